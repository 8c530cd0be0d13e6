//! `cargo xtask setup`: rights, packages, eBPF toolchain, in this order.
//!
//! Every task calls [`prepare`] first. When nothing is missing it costs a few milliseconds and prints nothing;
//! rights are checked before anything is changed. Two runs at once wait for each other on a file lock in the
//! cache. One thread.

use std::fs::{self, File, TryLockError};
use std::path::Path;

use anyhow::{Context as _, Result};
use ebpf_toolchain::{Compiler, cache_dir, linker};

use crate::{packages, rights, toolchain};

/// `cargo xtask setup` itself: says also that nothing was to do.
pub(crate) fn report() -> Result<bool> {
    if !prepare()? {
        return Ok(false);
    }
    let compiler = Compiler::find().context("the compiler is gone again")?;
    println!("set-up is complete; eBPF compiler: {}", compiler.root().display());
    Ok(true)
}

/// Makes the machine ready. False when a right is missing; that has been said then, and nothing was changed.
pub(crate) fn prepare() -> Result<bool> {
    let missing = rights::missing();
    if !missing.is_empty() {
        for sentence in &missing {
            eprintln!("error: {sentence}");
        }
        return Ok(false);
    }
    if is_complete() {
        return Ok(true);
    }
    let cache = cache_dir().context("neither HOME nor XDG_CACHE_HOME is set: set HOME and run this again")?;
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let _lock = lock(&cache)?;
    // Another run may have done it while this one waited. The packages of the cache's compiler come first,
    // for without them the compiler there looks damaged.
    let web_compiler = Compiler::find().is_none_or(|compiler| compiler.root().starts_with(&cache));
    let missing = packages::missing(web_compiler);
    if !missing.is_empty() {
        packages::install(&missing)?;
    }
    toolchain::install(&cache)?;
    Ok(true)
}

fn is_complete() -> bool {
    let Some(compiler) = Compiler::find() else { return false };
    let web_compiler = cache_dir().is_some_and(|cache| compiler.root().starts_with(cache));
    linker().is_some() && packages::missing(web_compiler).is_empty()
}

/// Takes the lock of a cache; it is free again when the file is closed, however this process ends.
pub(crate) fn lock(cache: &Path) -> Result<File> {
    let path = cache.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => println!("another set-up is running, waiting for it"),
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}
