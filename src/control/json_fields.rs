//! The fields of a JSON object that a caller sent, with a message for each mistake that names the field, what
//! was expected and what was found. Unknown and repeated fields are refused.

use serde::Deserializer;
use serde::de::{MapAccess, Visitor};
use serde_json::Value;
use serde_json::error::Category;

/// The fields that were not taken yet.
#[derive(Debug)]
pub(super) struct JsonFields(Vec<(String, Value)>);

impl JsonFields {
    /// Parses an object.
    ///
    /// # Errors
    /// Not JSON, no object, or a field that occurs twice.
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        if body.trim_ascii_start().first() != Some(&b'{') {
            return Err("expected a JSON object, {…}".to_owned());
        }
        let mut from = serde_json::Deserializer::from_slice(body);
        let fields = from.deserialize_map(Fields).and_then(|fields| from.end().map(|()| fields));
        let fields = fields.map_err(|error| {
            let (line, column) = (error.line(), error.column());
            match error.classify() {
                Category::Eof => format!(
                    "the JSON ends at line {line} column {column}, before its object is complete"
                ),
                _ => format!("not valid JSON at line {line} column {column}"),
            }
        })?;
        for (at, (name, _)) in fields.iter().enumerate() {
            if fields[..at].iter().any(|(other, _)| other == name) {
                return Err(format!("field {name:?} occurs twice"));
            }
        }
        Ok(Self(fields))
    }

    /// A string; `None` if the field is missing.
    ///
    /// # Errors
    /// Another type, `null` too: a caller that sends `null` does not mean a missing field.
    pub(super) fn string(&mut self, name: &str) -> Result<Option<String>, String> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(unexpected(name, "a string", &other)),
        }
    }

    /// A string; `None` if the field is missing or `null`.
    ///
    /// # Errors
    /// Another type.
    pub(super) fn optional_string(&mut self, name: &str) -> Result<Option<String>, String> {
        if self.0.iter().any(|(field, value)| field == name && value.is_null()) {
            self.take(name);
        }
        self.string(name)
    }

    /// A list of strings; empty if the field is missing.
    ///
    /// # Errors
    /// Another type, or an item that is no string.
    pub(super) fn strings(&mut self, name: &str) -> Result<Vec<String>, String> {
        let items = match self.take(name) {
            None => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(text @ Value::String(_)) => {
                let expected = format!("a list of strings, such as [{text}]");
                return Err(unexpected(name, &expected, &text));
            }
            Some(other) => return Err(unexpected(name, "a list of strings", &other)),
        };
        let string = |item| match item {
            Value::String(text) => Ok(text),
            other => Err(unexpected(name, "a list of strings, in it", &other)),
        };
        items.into_iter().map(string).collect()
    }

    /// A truth; false if the field is missing.
    ///
    /// # Errors
    /// Another type.
    pub(super) fn truth(&mut self, name: &str) -> Result<bool, String> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(truth)) => Ok(truth),
            Some(other) => Err(unexpected(name, "true or false without quotes", &other)),
        }
    }

    /// A whole number; 0 if the field is missing.
    ///
    /// # Errors
    /// Another type, or a number below 0 or above `max`.
    pub(super) fn number(&mut self, name: &str, max: usize) -> Result<usize, String> {
        let Some(value) = self.take(name) else { return Ok(0) };
        let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
        let expected = || unexpected(name, &format!("a whole number from 0 to {max}"), &value);
        number.filter(|number| *number <= max).ok_or_else(expected)
    }

    /// A whole number; `None` if the field is missing, `Some(None)` if it is `null`.
    ///
    /// # Errors
    /// As [`JsonFields::number`].
    pub(super) fn nullable_number(
        &mut self,
        name: &str,
        max: usize,
    ) -> Result<Option<Option<usize>>, String> {
        match self.0.iter().find(|(field, _)| field == name) {
            None => Ok(None),
            Some((_, value)) if value.is_null() => {
                self.take(name);
                Ok(Some(None))
            }
            Some(_) => self.number(name, max).map(Some).map(Some),
        }
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// A field is left that no call has taken. `known`: all that the object may have.
    pub(super) fn finish(self, known: &[&str]) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => {
                Err(format!("unknown field {name:?}: expected some of {}", known.join(", ")))
            }
        }
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.0.iter().position(|(field, _)| field == name)?;
        Some(self.0.swap_remove(at).1)
    }
}

fn unexpected(name: &str, expected: &str, found: &Value) -> String {
    let found = match found {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        // Not more than a line of what may be a megabyte.
        Value::String(text) if text.len() > 80 => "a long string".to_owned(),
        other => other.to_string(),
    };
    format!("field {name:?}: expected {expected}, found {found}")
}

/// Keeps repeated fields, which [`Value`] drops.
struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Vec<(String, Value)>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mistake in an object of one field of each type.
    fn mistake(body: &str) -> String {
        let read = || {
            let mut fields = JsonFields::parse(body.as_bytes())?;
            fields.string("text")?;
            fields.optional_string("note")?;
            fields.strings("list")?;
            fields.truth("truth")?;
            fields.number("number", 10)?;
            fields.finish(&["text", "note", "list", "truth", "number"])
        };
        read().err().unwrap_or_default()
    }

    #[test]
    fn each_mistake_names_field_expectation_and_finding() {
        for (body, expected) in [
            (r#"{"text": "a", "list": ["a"], "truth": true, "number": 10, "note": null}"#, ""),
            ("", "expected a JSON object, {…}"),
            ("[]", "expected a JSON object, {…}"),
            ("{", "the JSON ends at line 1 column 1, before its object is complete"),
            ("{} x", "not valid JSON at line 1 column 4"),
            (r#"{"text": 1}"#, r#"field "text": expected a string, found 1"#),
            (r#"{"text": null}"#, r#"field "text": expected a string, found null"#),
            (
                r#"{"list": "a"}"#,
                r#"field "list": expected a list of strings, such as ["a"], found "a""#,
            ),
            (
                r#"{"list": [[]]}"#,
                r#"field "list": expected a list of strings, in it, found a list"#,
            ),
            (
                r#"{"truth": "yes"}"#,
                r#"field "truth": expected true or false without quotes, found "yes""#,
            ),
            (
                r#"{"number": -1}"#,
                r#"field "number": expected a whole number from 0 to 10, found -1"#,
            ),
            (
                r#"{"nmber": 1}"#,
                r#"unknown field "nmber": expected some of text, note, list, truth, number"#,
            ),
            (r#"{"text": "a", "text": "b"}"#, r#"field "text" occurs twice"#),
        ] {
            assert_eq!(mistake(body), expected, "{body}");
        }
    }
}
