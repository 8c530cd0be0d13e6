//! Aligned columns, colour, and the page they are put on.
//!
//! Every cell and line passes [`printable`], so that no text of others can steer the terminal.

use crate::output::printable;
use std::{fmt::Display, time::SystemTime};

/// Space between columns.
const GAP: usize = 3;

/// How a piece of text looks if colour is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Style {
    #[default]
    Plain,
    Title,
    Good,
    Warning,
    Bad,
}

impl Style {
    /// Select Graphic Rendition (ECMA-48, 8.3.117).
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Title => "1",
            Self::Good => "32",
            Self::Warning => "33",
            Self::Bad => "31",
        }
    }
}

/// Rows of cells; what is missing at the end of a row is empty.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<(String, Style)>>,
}

impl Table {
    /// A table with a header.
    pub(crate) fn with_header(titles: &[&str]) -> Self {
        Self { rows: vec![titles.iter().map(|t| ((*t).to_owned(), Style::Title)).collect()] }
    }

    /// A table of names and values.
    pub(crate) fn fields() -> Self {
        Self::default()
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.styled_row(cells.into_iter().map(|text| (text, Style::Plain)));
    }

    pub(crate) fn styled_row(&mut self, cells: impl IntoIterator<Item = (String, Style)>) {
        let clean = |(text, style): (String, Style)| (printable(&text).into_owned(), style);
        self.rows.push(cells.into_iter().map(clean).collect());
    }

    /// A name and its value.
    pub(crate) fn field(&mut self, name: &str, value: impl Display) {
        self.styled_field(name, value, Style::Plain);
    }

    pub(crate) fn styled_field(&mut self, name: &str, value: impl Display, style: Style) {
        self.styled_row([(name.to_owned(), Style::Title), (value.to_string(), style)]);
    }

    /// A name and its values, one below the other; nothing if there are none.
    pub(crate) fn list_field<T: Display>(&mut self, name: &str, values: impl IntoIterator<Item = T>) {
        let mut name = name;
        for value in values {
            self.field(name, value);
            name = "";
        }
    }
}

/// Where tables and lines go.
#[derive(Debug)]
pub(crate) struct Page<'a> {
    text: &'a mut String,
    colour: bool,
    now: SystemTime,
}

impl<'a> Page<'a> {
    pub(crate) fn new(text: &'a mut String, colour: bool, now: SystemTime) -> Self {
        Self { text, colour, now }
    }

    /// The time, for ages.
    pub(crate) fn now(&self) -> SystemTime {
        self.now
    }

    pub(crate) fn line(&mut self, text: &str) {
        self.styled_line(text, Style::Plain);
    }

    pub(crate) fn styled_line(&mut self, text: &str, style: Style) {
        self.put(&printable(text), style);
        self.text.push('\n');
    }

    /// A blank line and the title of what follows.
    pub(crate) fn title(&mut self, text: &str) {
        self.line("");
        self.styled_line(text, Style::Title);
    }

    /// A table, each column as wide as its widest cell; the last one is not padded.
    pub(crate) fn block(&mut self, table: &Table) {
        let columns = table.rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut widths = vec![0; columns];
        for row in &table.rows {
            for (width, (text, _)) in widths.iter_mut().zip(row) {
                *width = text.chars().count().max(*width);
            }
        }
        for row in &table.rows {
            // Cells after the last one with text need no padding either.
            let used = row.iter().rposition(|(text, _)| !text.is_empty()).map_or(0, |last| last + 1);
            for (index, ((text, style), width)) in row[..used].iter().zip(&widths).enumerate() {
                self.put(text, *style);
                if index + 1 < used {
                    let padding = width + GAP - text.chars().count();
                    self.text.extend(std::iter::repeat_n(' ', padding));
                }
            }
            self.text.push('\n');
        }
    }

    fn put(&mut self, text: &str, style: Style) {
        if self.colour && style != Style::Plain && !text.is_empty() {
            self.text.push_str(&format!("\x1b[{}m{text}\x1b[0m", style.code()));
        } else {
            self.text.push_str(text);
        }
    }
}
