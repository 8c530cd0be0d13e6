//! What the documentation tells people to type.

use super::run_in;
use netctl::Exit;
use std::path::Path;

/// Commands in the documentation stand for things of the reader's by these words.
const STANDS_FOR: [(&str, &str); 6] = [
    ("<address of B>", "192.0.2.2"),
    ("<ClusterIP>", "10.96.0.10"),
    ("<client>", "192.0.2.7"),
    ("<node>", "198.51.100.1"),
    ("<port>", "8080"),
    ("\\|", "|"),
];

/// The commands that the table of things that do not work tells to call, and how many rows it has.
fn commands(page: &str) -> (Vec<String>, usize) {
    let rows: Vec<&str> = page
        .lines()
        .filter(|line| {
            line.strip_prefix("| ").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
        .collect();
    let spans = rows.iter().flat_map(|row| row.split('`').skip(1).step_by(2));
    (spans.filter(|span| span.starts_with("netctl ")).map(str::to_owned).collect(), rows.len())
}

#[test]
fn every_case_of_operations_names_a_command_that_there_is() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (commands, rows) = commands(&page);
    assert!(rows >= 20 && commands.len() >= rows, "{rows} cases with {} commands", commands.len());
    let away = tempfile::tempdir().unwrap();
    for command in commands {
        let plain = STANDS_FOR.iter().fold(command.clone(), |text, (word, value)| text.replace(word, value));
        let words: Vec<&str> = plain.split_ascii_whitespace().skip(1).collect();
        let ran = run_in(away.path(), &words, false, false);
        assert_eq!(ran.exit, Exit::Refused, "`{command}` is no command, or asks nobody: {}", ran.err);
        assert!(ran.err.contains("ipamd"), "`{command}`: {}", ran.err);
    }
}
