//! What is said of a program that the kernel's verifier refuses.
//!
//! The program is hand-made, so that the refusal is the kernel's own.

use crate::object::object;
use aya::{EbpfLoader, programs::SchedClassifier};
use ipamd::datapath::DatapathError;

/// How many instructions that do nothing stand before the one that is refused: the verifier's log has a line for each.
const IDLE: usize = 300;

#[test]
fn a_rejection_names_the_program_and_shows_the_end_of_the_verifiers_log() {
    // r0 = 0, again and again; then r0 = *(u64 *)(r9 + 0), whose r9 nobody has set.
    let mut instructions = vec![[0xb7, 0, 0, 0, 0, 0, 0, 0]; IDLE];
    instructions.push([0x79, 0x90, 0, 0, 0, 0, 0, 0]);
    instructions.push([0x95, 0, 0, 0, 0, 0, 0, 0]);
    let mut ebpf = EbpfLoader::new().load(&object("bad", &instructions)).unwrap();
    let program: &mut SchedClassifier = ebpf.program_mut("bad").unwrap().try_into().unwrap();
    let cause = program.load().unwrap_err();
    let whole = cause.to_string();
    assert!(whole.lines().count() > IDLE, "the kernel said less than was hoped for:\n{whole}");

    let said = DatapathError::Program { program: "bad", cause: Box::new(cause) }.to_string();
    let lines: Vec<_> = said.lines().collect();
    assert!(lines[0].contains("program bad") && lines[0].contains("Permission denied"), "{said}");
    assert!(lines[0].contains("uname -r"), "the next step: {said}");
    assert!(lines.iter().any(|line| line.contains("R9 !read_ok")), "{said}");
    assert!(lines.len() < 40, "{} lines:\n{said}", lines.len());
}

#[test]
fn the_same_object_loads_when_its_program_is_good() {
    let instructions = [[0xb7, 0, 0, 0, 0, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    let mut ebpf = EbpfLoader::new().load(&object("bad", &instructions)).unwrap();
    let program: &mut SchedClassifier = ebpf.program_mut("bad").unwrap().try_into().unwrap();
    program.load().unwrap();
}
