//! Parts of the kernel that some kernels are built without.

use std::{fs, path::Path};

use anyhow::{Result, ensure};

/// Whether this kernel was built without a module that a test needs. `asked` is what became of the first use of it. Before this says
/// so, it proves it: the kernel has no such module for anybody, and refused the use. A kernel that has the module, loaded or not, is
/// never let off; nor is one of Debian's, which all have those that tests need.
///
/// # Errors
/// The kernel has it, and it cannot be used.
pub fn is_missing<T>(module: &str, asked: Result<T>) -> Result<bool> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    let Err(refused) = asked else { return Ok(false) };
    ensure!(!Path::new("/sys/module").join(module).exists(), "{module} is loaded, and yet: {refused:#}");
    let modules = Path::new("/lib/modules").join(&release);
    let file = format!("/{module}.ko");
    let listed = |name: &str| {
        let text = fs::read_to_string(modules.join(name)).unwrap_or_default();
        text.lines().any(|line| line.split(':').next().unwrap_or(line).contains(&file))
    };
    ensure!(
        !listed("modules.dep") && !listed("modules.builtin"),
        "{} has {module}, and it cannot be used: {refused:#}",
        modules.display()
    );
    ensure!(!release.ends_with("-amd64"), "a kernel of Debian's, {release}, without {module}: {refused:#}");
    println!("Linux {release} has no {module}: {refused:#}");
    Ok(true)
}
