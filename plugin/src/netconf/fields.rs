//! Reading a JSON object field by field, with errors that name the key by its whole path.
//!
//! `null` counts as absent, as Go's runtimes write what is not set.

use crate::{environment::shorten, error};
use ipamd_api::ApiError;
use serde_json::{Map, Value};
use std::{fmt::Display, str::FromStr};

/// Longest text that is parsed: an IPv6 network takes 43 characters.
const MAX_PARSED: usize = 100;

/// Who wrote an object, which decides how strictly it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writer {
    /// A person, in a conflist: keys are exact, empty text is a mistake.
    User,
    /// A runtime in Go: keys come in any case (containerd sends `HostPort`), and empty text is what was not set.
    Runtime,
}

/// An object and where it is.
#[derive(Debug, Clone)]
pub(crate) struct Fields<'a> {
    object: &'a Map<String, Value>,
    path: String,
    writer: Writer,
}

/// A value and where it is.
#[derive(Debug, Clone)]
pub(crate) struct Item<'a> {
    value: &'a Value,
    path: String,
    writer: Writer,
}

impl<'a> Fields<'a> {
    /// The netconf itself.
    pub(crate) fn new(object: &'a Map<String, Value>) -> Self {
        Self { object, path: String::new(), writer: Writer::User }
    }

    /// The same, read as if `writer` wrote it.
    pub(crate) fn written_by(mut self, writer: Writer) -> Self {
        self.writer = writer;
        self
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// A field, if it is there and not `null`.
    pub(crate) fn get(&self, key: &str) -> Option<Item<'a>> {
        let value = self.object.get(key).or_else(|| {
            let any_case = || self.object.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| v);
            (self.writer == Writer::Runtime).then(any_case).flatten()
        })?;
        (!value.is_null()).then(|| Item { value, path: self.path_of(key), writer: self.writer })
    }

    /// Whether the key is there at all, `null` included.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.object.contains_key(key)
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, ApiError> {
        let text = self.get(key).map(|item| item.text()).transpose()?;
        Ok(text.filter(|text| self.writer == Writer::User || !text.is_empty()))
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, ApiError> {
        self.get(key)
            .map(|item| item.value.as_bool().ok_or_else(|| item.wrong_type("true or false")))
            .transpose()
    }

    pub(crate) fn number<T: TryFrom<u64>>(&self, key: &str) -> Result<Option<T>, ApiError> {
        let Some(item) = self.get(key) else { return Ok(None) };
        if !item.value.is_number() {
            return Err(item.wrong_type("a whole number"));
        }
        let number = item.value.as_u64().and_then(|n| T::try_from(n).ok());
        let out_of_range = || {
            let most = (1u128 << (8 * size_of::<T>())) - 1;
            error::invalid(format!(
                "netconf: {:?} is {}, but must be a whole number from 0 to {most}",
                item.path, item.value
            ))
        };
        number.map(Some).ok_or_else(out_of_range)
    }

    /// A text of some form, e.g. an address.
    pub(crate) fn parsed<T: FromStr<Err: Display>>(&self, key: &str) -> Result<Option<T>, ApiError> {
        if self.text(key)?.is_none() {
            return Ok(None);
        }
        self.get(key).map(|item| item.parsed()).transpose()
    }

    /// The elements of a list; none if it is absent.
    pub(crate) fn list(&self, key: &str) -> Result<Vec<Item<'a>>, ApiError> {
        self.get(key).map_or(Ok(Vec::new()), |item| item.list())
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Vec<String>, ApiError> {
        self.list(key)?.iter().map(|item| item.text().map(str::to_owned)).collect()
    }

    pub(crate) fn parsed_list<T: FromStr<Err: Display>>(&self, key: &str) -> Result<Vec<T>, ApiError> {
        self.list(key)?.iter().map(Item::parsed).collect()
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<Fields<'a>>, ApiError> {
        self.get(key).map(|item| item.object()).transpose()
    }

    pub(crate) fn objects(&self, key: &str) -> Result<Vec<Fields<'a>>, ApiError> {
        self.list(key)?.iter().map(Item::object).collect()
    }

    /// The keys and values as they are.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a String, Item<'a>)> {
        self.object
            .iter()
            .map(|(key, value)| (key, Item { value, path: self.path_of(key), writer: self.writer }))
    }

    /// Refuses every key but these. For objects that are Weft's own, where an unknown key is a mistyped one.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), ApiError> {
        match self.object.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some((key, value)) => Err(error::unsupported(
                &self.path_of(key),
                shorten(&value.to_string()),
                &format!("this place takes only {}", known.join(", ")),
            )),
        }
    }
}

impl<'a> Item<'a> {
    pub(crate) fn text(&self) -> Result<&'a str, ApiError> {
        self.value.as_str().ok_or_else(|| self.wrong_type("text in quotes"))
    }

    pub(crate) fn parsed<T: FromStr<Err: Display>>(&self) -> Result<T, ApiError> {
        let text = self.text()?;
        // Parsers repeat the text in their errors, which would flood the message.
        if text.len() > MAX_PARSED {
            return Err(error::invalid(format!(
                "netconf: {:?} is {}, which is longer than any address",
                self.path,
                shorten(text)
            )));
        }
        text.trim().parse().map_err(|cause| {
            error::invalid(format!(
                "netconf: {:?} is {}, which is not valid: {cause}",
                self.path,
                shorten(text)
            ))
        })
    }

    pub(crate) fn list(&self) -> Result<Vec<Item<'a>>, ApiError> {
        let list = self.value.as_array().ok_or_else(|| self.wrong_type("a list"))?;
        let item = |(at, value)| Item { value, path: format!("{}[{at}]", self.path), writer: self.writer };
        Ok(list.iter().enumerate().map(item).collect())
    }

    pub(crate) fn object(&self) -> Result<Fields<'a>, ApiError> {
        let object = self.value.as_object().ok_or_else(|| self.wrong_type("an object"))?;
        Ok(Fields { object, path: self.path.clone(), writer: self.writer })
    }

    pub(crate) fn map(&self) -> Result<&'a Map<String, Value>, ApiError> {
        self.value.as_object().ok_or_else(|| self.wrong_type("an object"))
    }

    /// Whether it is a list; what may be one or something else is read after this.
    pub(crate) fn is_list(&self) -> bool {
        self.value.is_array()
    }

    fn wrong_type(&self, wanted: &str) -> ApiError {
        let value = match self.value {
            Value::Array(_) => "a list".to_owned(),
            Value::Object(_) => "an object".to_owned(),
            Value::String(text) => shorten(text),
            other => other.to_string(),
        };
        error::decode(format!("netconf: {:?} is {value}, but must be {wanted}", self.path))
    }
}
