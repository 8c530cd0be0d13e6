//! Hand-made eBPF objects, for programs that no compiler makes: an empty one, and one that no verifier takes.

/// An ELF object (`elf(5)`, 64 bits, little endian, machine `EM_BPF`) with one program of the type classifier.
pub(crate) fn object(program: &str, instructions: &[[u8; 8]]) -> Vec<u8> {
    const EHDR: usize = 64;
    let names = ["", "classifier", "license", ".symtab", ".strtab", program, ""].join("\0").into_bytes();
    // Where a name is: each ends with a zero.
    let name = |wanted: &str| {
        let wanted = [wanted.as_bytes(), &[0]].concat();
        let found = names.windows(wanted.len()).position(|window| window == wanted);
        found.map_or(0, |at| at as u32)
    };
    let code = instructions.concat();
    let symbol = [
        &name(program).to_le_bytes()[..],
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
    let mut add = |section: &str, kind: u32, flags: u64, link: u32, entry: u64, bytes: &[u8]| {
        let offset = (EHDR + contents.len()) as u64;
        contents.extend(bytes);
        contents.resize(contents.len().next_multiple_of(8), 0);
        headers.extend([name(section).to_le_bytes(), kind.to_le_bytes()].concat());
        headers.extend([flags, 0, offset, bytes.len() as u64].map(u64::to_le_bytes).concat());
        headers.extend([link, u32::from(kind == 2)].map(u32::to_le_bytes).concat());
        headers.extend([8, entry].map(u64::to_le_bytes).concat());
    };
    add("classifier", 1, 6, 0, 0, &code);
    add("license", 1, 2, 0, 0, b"GPL\0");
    add(".symtab", 2, 0, 4, 24, &symbols);
    add(".strtab", 3, 0, 0, 0, &names);
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
