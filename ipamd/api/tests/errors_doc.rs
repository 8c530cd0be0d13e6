//! docs/errors.md is generated from [`ErrorCode::ALL`]. This test fails when it is stale; with `WEFT_BLESS=1` it writes
//! the file: `WEFT_BLESS=1 cargo test -p ipamd-api --test errors_doc`.

// clippy.toml allows these in test functions; all of this file is a test.
#![allow(clippy::unwrap_used)]

use ipamd_api::ErrorCode;
use std::{fmt::Write as _, fs, path::Path};

const HEAD: &str = "# Errors

Generated from `ErrorCode` (`ipamd/api/src/error.rs`); a test fails when it is stale.

Every error of Weft has the shape `{\"code\", \"msg\", \"details\"}`: in a CNI result (with the `cniVersion` of the
netconf), in an answer of ipamd's API, and on `netctl`'s standard error. The message names the object, the cause and the
next step. Codes below 100 are those of the [CNI specification](https://www.cni.dev/docs/spec/#error), codes from 100 on
are Weft's own. Numbers are never given a second meaning. `HTTP` is the status that carries the code on the API.

";

fn generate() -> String {
    let mut text = HEAD.to_owned();
    for (title, own) in [("Codes of the CNI specification", false), ("Codes of Weft", true)] {
        let _ = write!(
            text,
            "## {title}\n\n| code | name | HTTP | meaning | what to do |\n|---|---|---|---|---|\n"
        );
        for code in ErrorCode::ALL.iter().filter(|c| (c.number() >= 100) == own) {
            let _ = writeln!(
                text,
                "| {} | `{code:?}` | {} | {} | {} |",
                code.number(),
                code.http_status(),
                cell(code.meaning()),
                cell(code.remedy())
            );
        }
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// Text as it may stand in a cell.
fn cell(text: &str) -> String {
    text.trim().replace('|', "\\|")
}

#[test]
fn docs_errors_md_is_what_the_codes_say() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors.md");
    let generated = generate();
    if std::env::var_os("WEFT_BLESS").is_some() {
        fs::write(&file, &generated).unwrap();
    }
    let kept = fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(
        kept, generated,
        "docs/errors.md is stale: run `WEFT_BLESS=1 cargo test -p ipamd-api --test errors_doc` and commit it"
    );
}
