//! The documented configuration with every option set: the reader notes all options that there are while it reads this.

/// config/edge.toml with its `#option` lines made options.
pub(super) fn every_option() -> String {
    let is_option = |line: &str| {
        line.strip_prefix('#')
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '['))
    };
    let lines = include_str!("../../config/edge.toml").lines();
    lines.map(|line| if is_option(line) { &line[1..] } else { line }).fold(
        String::new(),
        |mut text, line| {
            text.push_str(line);
            text.push('\n');
            text
        },
    )
}
