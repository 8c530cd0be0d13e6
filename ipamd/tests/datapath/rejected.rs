//! What is said of a program that the kernel's verifier refuses.
//!
//! The program is a hand-made object of one function, so that the refusal is the kernel's own.

use aya::{EbpfLoader, programs::SchedClassifier};
use ipamd::datapath::DatapathError;

/// How many instructions that do nothing stand before the one that is refused: the verifier's log has a line for each.
const IDLE: usize = 300;

/// An ELF object (`elf(5)`, 64 bits, little endian, machine `EM_BPF`) with the program `bad` of the type classifier.
fn object(instructions: &[[u8; 8]]) -> Vec<u8> {
    const EHDR: usize = 64;
    const NAMES: &[u8] = b"\0classifier\0license\0.symtab\0.strtab\0bad\0";
    let name = |wanted: &[u8]| {
        let found = NAMES.windows(wanted.len()).position(|window| window == wanted);
        u32::try_from(found.unwrap()).unwrap()
    };
    let code = instructions.concat();
    let symbol = [
        &name(b"bad\0").to_le_bytes()[..],
        // STB_GLOBAL and STT_FUNC, in the first section, at its start.
        &[0x12, 0, 1, 0],
        &0_u64.to_le_bytes(),
        &(code.len() as u64).to_le_bytes(),
    ]
    .concat();
    let symbols = [[0; 24].to_vec(), symbol].concat();
    let mut contents = Vec::new();
    let mut headers = vec![0; 64];
    // Flags are SHF_ALLOC and SHF_EXECINSTR. Symbols link to their names, and their `info` is the number of the first
    // global one.
    let mut add = |section: &[u8], kind: u32, flags: u64, link: u32, entry: u64, bytes: &[u8]| {
        let offset = (EHDR + contents.len()) as u64;
        contents.extend(bytes);
        contents.resize(contents.len().next_multiple_of(8), 0);
        headers.extend([name(section).to_le_bytes(), kind.to_le_bytes()].concat());
        headers.extend([flags, 0, offset, bytes.len() as u64].map(u64::to_le_bytes).concat());
        headers.extend([link, u32::from(kind == 2)].map(u32::to_le_bytes).concat());
        headers.extend([8, entry].map(u64::to_le_bytes).concat());
    };
    add(b"classifier\0", 1, 6, 0, 0, &code);
    add(b"license\0", 1, 2, 0, 0, b"GPL\0");
    add(b".symtab\0", 2, 0, 4, 24, &symbols);
    add(b".strtab\0", 3, 0, 0, 0, NAMES);
    let header = [
        &b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0"[..],
        // ET_REL, EM_BPF, EV_CURRENT.
        &[1, 0, 247, 0, 1, 0, 0, 0],
        &[0, 0, (EHDR + contents.len()) as u64].map(u64::to_le_bytes).concat(),
        &0_u32.to_le_bytes(),
        // Sizes of the headers, their numbers (no segments, five sections), and the section of the names.
        &[64_u16, 0, 0, 64, 5, 4].map(u16::to_le_bytes).concat(),
    ]
    .concat();
    [header, contents, headers].concat()
}

#[test]
fn a_rejection_names_the_program_and_shows_the_end_of_the_verifiers_log() {
    // r0 = 0, again and again; then r0 = *(u64 *)(r9 + 0), whose r9 nobody has set.
    let mut instructions = vec![[0xb7, 0, 0, 0, 0, 0, 0, 0]; IDLE];
    instructions.push([0x79, 0x90, 0, 0, 0, 0, 0, 0]);
    instructions.push([0x95, 0, 0, 0, 0, 0, 0, 0]);
    let mut ebpf = EbpfLoader::new().load(&object(&instructions)).unwrap();
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
    let mut ebpf = EbpfLoader::new().load(&object(&instructions)).unwrap();
    let program: &mut SchedClassifier = ebpf.program_mut("bad").unwrap().try_into().unwrap();
    program.load().unwrap();
}
