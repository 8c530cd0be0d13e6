//! Forms of an answer: tables on a [`Page`], JSON, YAML; and what may reach a terminal.

use crate::{Exit, cli::Format, exit::Failure, render::Page};
use serde_json::Value;
use std::{borrow::Cow, time::SystemTime};

/// What a command prints and how it ends.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) exit: Exit,
}

impl Answer {
    pub(crate) fn done(text: String) -> Self {
        Self { text, exit: Exit::Done }
    }
}

/// How to print.
#[derive(Debug)]
pub(crate) struct Output {
    format: Format,
    colour: bool,
    now: SystemTime,
}

impl Output {
    pub(crate) fn new(format: Format, colour: bool, now: SystemTime) -> Self {
        Self { format, colour, now }
    }

    /// The time.
    pub(crate) fn now(&self) -> SystemTime {
        self.now
    }

    /// Whether tables are wanted.
    pub(crate) fn for_people(&self) -> bool {
        self.format == Format::Table
    }

    /// The answer in the wanted form: `raw` for programs, what `draw` puts on the page for people.
    pub(crate) fn answer(&self, raw: &Value, draw: impl FnOnce(&mut Page<'_>)) -> Result<String, Failure> {
        match self.format {
            Format::Table => {
                let mut text = String::new();
                draw(&mut Page::new(&mut text, self.colour, self.now));
                Ok(text)
            }
            Format::Json => {
                let json = serde_json::to_string_pretty(raw);
                json.map(|text| text + "\n").map_err(|e| Failure::Local(format!("no JSON can be made: {e}")))
            }
            Format::Yaml => yaml(raw),
        }
    }

    /// What is JSON by itself, whoever reads it.
    pub(crate) fn json_unless_yaml(&self, raw: &Value) -> Result<String, Failure> {
        match self.format {
            Format::Table => Self { format: Format::Json, ..*self }.answer(raw, |_| ()),
            Format::Json | Format::Yaml => self.answer(raw, |_| ()),
        }
    }

    /// The same of one of many that come one after another: JSON on one line, YAML as a document of its own.
    pub(crate) fn line(&self, raw: &Value, draw: impl FnOnce(&mut Page<'_>)) -> Result<String, Failure> {
        match self.format {
            Format::Table => self.answer(raw, draw),
            Format::Json => Ok(format!("{raw}\n")),
            Format::Yaml => Ok(format!("---\n{}", yaml(raw)?)),
        }
    }
}

fn yaml(raw: &Value) -> Result<String, Failure> {
    let mut text = serde_saphyr::to_string(raw)
        .map_err(|e| Failure::Local(format!("no YAML can be made: {e}; use -o json")))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// `text` with its control characters written out: names and labels come from container runtimes, and an escape
/// sequence in one must not reach the terminal.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().any(char::is_control) {
        let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
        Cow::Owned(text.chars().map(escape).collect())
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the text stands bare in YAML, where readers of YAML 1.1 and 1.2 may take it for something else.
    fn bare(text: &str) -> bool {
        yaml(&Value::from(text)).unwrap() == format!("{text}\n")
    }

    #[test]
    fn yaml_quotes_strings_that_look_like_numbers_or_words_of_yaml() {
        for text in [
            "000012345678",
            "123456789012",
            "1234567890e1",
            "0.1.0",
            "10.89.0.1",
            "null",
            "true",
            "no",
            "~",
            "",
            "12:34:50:10:00:11",
            "12:34",
            "0x1f",
            "- a",
            "a: b",
            "::1",
            "fe80::",
            "# x",
            "1_000",
        ] {
            let quoted = yaml(&Value::from(text)).unwrap();
            assert!(!bare(text), "{text:?} became {quoted}");
        }
        assert!(bare("web") && bare("10.89.0.0/24"));
    }
}
