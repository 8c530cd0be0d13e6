//! Nothing: the programs are the binary `weft-ebpf`, this library lets other crates of the workspace name the package.
#![no_std]
