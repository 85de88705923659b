//! Keys for signatures, from a file in the format of AWS's shared credentials or from environment
//! variables. Secrets are never shown: `Debug` and `Display` print `***`, and no error quotes them.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use http::HeaderValue;

/// An access key.
#[derive(Clone, Debug)]
pub(super) struct Credentials {
    key_id: String,
    secret_key: Secret,
    session_token: Option<Secret>,
}

impl Credentials {
    /// Reads a profile of a file of shared credentials.
    ///
    /// # Errors
    /// Why the file cannot be used; the file is not named.
    pub(super) fn read(path: &Path, profile: &str) -> Result<Self, String> {
        Self::parse(&read_text(path)?, profile)
    }

    /// The keys from the variables that AWS's tools read.
    ///
    /// # Errors
    /// The variable that is missing or not usable.
    pub(super) fn from_variables(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, String> {
        let read = |name| variable(name).filter(|value| !value.is_empty());
        Self::new(
            ("AWS_ACCESS_KEY_ID", read("AWS_ACCESS_KEY_ID")),
            ("AWS_SECRET_ACCESS_KEY", read("AWS_SECRET_ACCESS_KEY")),
            ("AWS_SESSION_TOKEN", read("AWS_SESSION_TOKEN")),
        )
    }

    /// Of options that are repeated the last counts, as in AWS's tools.
    fn parse(text: &str, profile: &str) -> Result<Self, String> {
        let (mut is_found, mut is_inside) = (false, false);
        let (mut key_id, mut secret_key, mut token) = (None, None, None);
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.split(']').next()) {
                is_inside = name.trim() == profile;
                is_found |= is_inside;
                continue;
            }
            if !is_inside || line.starts_with(['#', ';']) {
                continue;
            }
            let Some((name, value)) = line.split_once('=') else { continue };
            let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
            match name.trim() {
                "aws_access_key_id" => key_id = value,
                "aws_secret_access_key" => secret_key = value,
                "aws_session_token" => token = value,
                _ => {}
            }
        }
        if !is_found {
            return Err(format!("the file has no profile [{profile}]"));
        }
        Self::new(
            ("aws_access_key_id", key_id),
            ("aws_secret_access_key", secret_key),
            ("aws_session_token", token),
        )
        .map_err(|error| format!("profile [{profile}]: {error}"))
    }

    /// Keys with the names that errors give them. No error quotes a value.
    pub(super) fn new(
        (id_name, key_id): (&str, Option<String>),
        (secret_name, secret_key): (&str, Option<String>),
        (token_name, session_token): (&str, Option<String>),
    ) -> Result<Self, String> {
        let key_id = key_id.ok_or_else(|| format!("{id_name} is not set"))?;
        let secret_key = secret_key.ok_or_else(|| format!("{secret_name} is not set"))?;
        let is_word = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        for (name, value) in [
            (id_name, Some(&key_id)),
            (secret_name, Some(&secret_key)),
            (token_name, session_token.as_ref()),
        ] {
            if value.is_some_and(|value| !is_word(value)) {
                return Err(format!("{name}: expected visible ASCII characters without spaces"));
            }
        }
        if key_id.contains(['/', ',']) {
            return Err(format!("{id_name}: expected a key's id, without \"/\" and \",\""));
        }
        let session_token = session_token.map(Secret);
        Ok(Self { key_id, secret_key: Secret(secret_key), session_token })
    }

    /// The public name of the key.
    pub(super) fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The secret that signatures are made with.
    pub(super) fn secret_key(&self) -> &str {
        &self.secret_key.0
    }

    /// The token of temporary credentials.
    pub(super) fn session_token(&self) -> Option<HeaderValue> {
        let token = self.session_token.as_ref()?;
        Some(sensitive(&token.0).expect("a token is visible ASCII"))
    }
}

/// A text that is not shown.
#[derive(Clone)]
struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The text as a field value that `Debug` does not show and HPACK does not index. `None`: it is none.
pub(super) fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The text of a file of secrets.
pub(super) fn read_text(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let file = File::open(path).map_err(|error| format!("cannot read the file: {error}"))?;
    let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
    let bytes = read.map_err(|error| format!("cannot read the file: {error}"))?;
    if bytes as u64 > FILE_BYTES_MAX {
        return Err(format!("the file is larger than {} KiB", FILE_BYTES_MAX >> 10));
    }
    Ok(text)
}

/// A file of credentials has a few lines for each profile.
const FILE_BYTES_MAX: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# rotated daily\n[default]\naws_access_key_id = AKID\n\
        aws_secret_access_key=se/cr=et+key\nregion = eu-central-1\n\n\
        [ temporary ]\n; from the agent\naws_access_key_id=ASIA\naws_secret_access_key = other\n\
        aws_session_token = to/ken==\n[half]\naws_access_key_id = A\naws_secret_access_key =\n\
        [odd]\naws_access_key_id = a b\naws_secret_access_key = hunter2\n";

    #[test]
    fn a_profile_is_read_from_a_file_of_shared_credentials() {
        let read = |profile| {
            let credentials = Credentials::parse(FILE, profile).unwrap();
            let token = credentials.session_token.clone().map(|token| token.0);
            (credentials.key_id.clone(), credentials.secret_key().to_owned(), token)
        };
        assert_eq!(read("default"), ("AKID".into(), "se/cr=et+key".into(), None));
        assert_eq!(read("temporary"), ("ASIA".into(), "other".into(), Some("to/ken==".into())));
    }

    #[test]
    fn a_mistake_names_the_profile_and_the_option_and_no_value() {
        let check = |profile, expected: &str| {
            assert_eq!(Credentials::parse(FILE, profile).unwrap_err(), expected);
        };
        check("none", "the file has no profile [none]");
        check("half", "profile [half]: aws_secret_access_key is not set");
        check(
            "odd",
            "profile [odd]: aws_access_key_id: expected visible ASCII characters without spaces",
        );
    }

    #[test]
    fn keys_are_read_from_the_environment() {
        let read = |set: &'static [(&str, &str)]| {
            Credentials::from_variables(|name| {
                let found = set.iter().find(|(one, _)| *one == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        let both = &[("AWS_ACCESS_KEY_ID", "AKID"), ("AWS_SECRET_ACCESS_KEY", "key")];
        assert_eq!(read(both).unwrap().secret_key(), "key");
        assert_eq!(read(&both[..1]).unwrap_err(), "AWS_SECRET_ACCESS_KEY is not set");
        let empty = &[("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "key")];
        assert_eq!(read(empty).unwrap_err(), "AWS_ACCESS_KEY_ID is not set");
    }

    #[test]
    fn a_secret_is_never_shown() {
        let credentials = Credentials::parse(FILE, "temporary").unwrap();
        let shown = format!("{credentials:?} {} {:?}", credentials.secret_key, sensitive("other"));
        assert!(shown.contains("***"), "{shown}");
        assert!(!shown.contains("other") && !shown.contains("to/ken"), "{shown}");
    }
}
