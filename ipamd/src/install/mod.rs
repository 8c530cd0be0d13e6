//! `ipamd install-cni`: puts the executables that runtimes call, `netctl` and the conflist on a node, and takes them away again.
//!
//! For images without a shell. Invariants: each file is there whole or as it was; nothing is committed before all of it is on the disk;
//! executables come before the conflist, which tells runtimes that there is a network, and go after it; a newer release is left alone
//! as a whole; nothing that is not Weft's is changed. Decisions are in `plan`, questions to files in `look`. One thread; two
//! installations at once wait for each other.

mod look;
mod plan;
#[cfg(test)]
mod tests;

use crate::{conflist, durable::Staged};
use clap::Parser;
use nix::fcntl::{Flock, FlockArg};
use plan::{Decision, Found, FoundConflist};
use semver::Version;
use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

/// The name of the subcommand.
pub const COMMAND: &str = "install-cni";

const WEFT: &str = "weft";
/// The same executable, by a link.
const WEFT_IPAM: &str = "weft-ipam";
const NETCTL: &str = "netctl";

/// Executables in the order in which they are put into place; the conflist follows.
const EXECUTABLES: [&str; 3] = [WEFT, WEFT_IPAM, NETCTL];

/// Put the CNI plugin and its configuration on this node, for container runtimes to find
#[derive(Debug, Parser)]
#[command(name = "ipamd install-cni", version)]
pub struct Options {
    /// Folder with `weft` and `netctl` of this release [default: that of this ipamd]
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// The runtime's folder of CNI plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,
    /// The runtime's folder of CNI configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,
    /// The conflist to install; without one, the configuration is left to the operator
    #[arg(long, value_name = "FILE")]
    conflist: Option<PathBuf>,
    /// Name of the conflist in its folder; runtimes take the first by name
    #[arg(long, value_name = "NAME", default_value = "10-weft.conflist")]
    conflist_name: String,
    /// Replace a newer release, too
    #[arg(long, conflicts_with = "uninstall")]
    downgrade: bool,
    /// Remove what was installed, of whatever version; networks and containers stay (see `netctl uninstall`)
    #[arg(long, conflicts_with_all = ["conflist", "from"])]
    uninstall: bool,
}

/// Why nothing was installed or removed; what is named later than the files that were reported stays as it was.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The command line.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// A file of the release.
    #[error("{path} is to be installed and cannot be used: {cause}; take all files from one release")]
    Source {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// The conflist that is to be installed.
    #[error("{path} is to be installed and is no conflist that calls weft: {cause}; mend it")]
    Conflist {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// The name of the conflist.
    #[error("{0:?} is no name of a conflist: use a file name that ends with .conflist")]
    Name(String),
    /// A place is taken.
    #[error(
        "{path} is not Weft's ({cause}) and was left as it is; remove it, or choose another place by --bin-dir or --conflist-name"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Why it is thought so.
        cause: String,
    },
    /// The file system.
    #[error("{path} cannot be {done}: {cause}; {remedy}", remedy = remedy(cause))]
    Refused {
        /// The file or folder.
        path: PathBuf,
        /// What was to be done with it.
        done: &'static str,
        /// The kernel's words.
        cause: io::Error,
    },
}

/// What to do about an error of the file system.
fn remedy(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::EROFS) => "its folder is read-only: mount it writable, or choose another",
        Some(libc::ENOSPC | libc::EDQUOT) => "the disk is full: free some space, and run this again",
        Some(libc::EACCES | libc::EPERM) => "run this as root, on a folder that may be changed",
        _ => "see to it, and run this again",
    }
}

/// Runs the subcommand: `arguments` begin with its own name. What was done is written to `out`.
///
/// # Errors
/// See [`InstallError`]; `--help` and `--version` come as [`InstallError::Usage`], too.
pub fn run<I>(arguments: I, out: &mut dyn Write) -> Result<(), InstallError>
where
    I: IntoIterator<Item = OsString>,
{
    let options = Options::try_parse_from(arguments)?;
    // A reader that went away is no reason to stop halfway.
    let mut say = |line: String| drop(writeln!(out, "{line}"));
    let name = &options.conflist_name;
    if Path::new(name).file_name() != Some(name.as_ref()) || !name.ends_with(".conflist") {
        return Err(InstallError::Name(name.clone()));
    }
    if options.uninstall { uninstall(&options, &mut say) } else { install(&options, &mut say) }
}

/// This release.
fn own_version() -> Result<Version, InstallError> {
    let text = env!("CARGO_PKG_VERSION");
    Version::parse(text).map_err(|e| InstallError::Source { path: text.into(), cause: e.to_string() })
}

fn refused(path: &Path, done: &'static str) -> impl FnOnce(io::Error) -> InstallError {
    move |cause| InstallError::Refused { path: path.to_owned(), done, cause }
}

fn install(options: &Options, say: &mut dyn FnMut(String)) -> Result<(), InstallError> {
    let own = own_version()?;
    let from = match &options.from {
        Some(from) => from.clone(),
        None => own_folder()?,
    };
    let weft = release(&from, WEFT, &own)?;
    let netctl = release(&from, NETCTL, &own)?;
    let conflist = options.conflist.as_deref().map(usable_conflist).transpose()?;

    let bin_dir = &options.bin_dir;
    make_folder(bin_dir)?;
    let _lock = lock(bin_dir)?;
    if let Decision::Keep { path, version } = plan::decide(&own, &found(bin_dir)?, options.downgrade)? {
        say(format!(
            "{} is of the newer release {version}: left as it is, and all else, too (--downgrade replaces it with {own})",
            path.display()
        ));
        return Ok(());
    }
    let place = options.conf_dir.join(&options.conflist_name);
    if conflist.is_some() {
        make_folder(&options.conf_dir)?;
        if look::conflist(&place).map_err(refused(&place, "read"))? == FoundConflist::Foreign {
            return Err(InstallError::Foreign { path: place, cause: "it does not call weft".to_owned() });
        }
    }

    let mut staged = Vec::new();
    for (name, bytes) in [(WEFT, &weft), (NETCTL, &netctl)] {
        staged.push((bin_dir.join(name), stage(&bin_dir.join(name), 0o755, bytes)?));
    }
    let link = bin_dir.join(WEFT_IPAM);
    let is_link = fs::read_link(&link).is_ok_and(|to| to == Path::new(WEFT));
    let new =
        if is_link { None } else { Some(Staged::link(&link, WEFT).map_err(refused(&link, "written"))?) };
    staged.insert(1, (link, new));
    if let Some(bytes) = &conflist {
        staged.push((place.clone(), stage(&place, 0o644, bytes)?));
    }
    for (path, new) in staged {
        let did = if new.is_some() { "installed" } else { "unchanged" };
        if let Some(new) = new {
            new.commit().map_err(refused(&path, "written"))?;
        }
        say(format!("{did} {}", path.display()));
    }
    for other in conflist::others_that_call_weft(&options.conf_dir, &options.conflist_name) {
        say(format!("note: {} calls weft, too; runtimes take the first by name", other.display()));
    }
    Ok(())
}

/// The new content of a file, on the disk beside it; none when the file is like this already.
fn stage(path: &Path, mode: u32, bytes: &[u8]) -> Result<Option<Staged>, InstallError> {
    if is_like(path, mode, bytes) {
        return Ok(None);
    }
    Staged::file(path, mode, bytes).map(Some).map_err(refused(path, "written"))
}

fn is_like(path: &Path, mode: u32, bytes: &[u8]) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::symlink_metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o7777 == mode)
        && fs::read(path).is_ok_and(|there| there == bytes)
}

fn uninstall(options: &Options, say: &mut dyn FnMut(String)) -> Result<(), InstallError> {
    let place = options.conf_dir.join(&options.conflist_name);
    match look::conflist(&place).map_err(refused(&place, "read"))? {
        FoundConflist::Absent => {}
        FoundConflist::Weft | FoundConflist::Broken => remove(&place, say)?,
        FoundConflist::Foreign => say(format!("left {}: it does not call weft", place.display())),
    }
    if !options.bin_dir.exists() {
        return Ok(());
    }
    let _lock = lock(&options.bin_dir)?;
    for (path, found) in found(&options.bin_dir)?.into_iter().rev() {
        match found {
            Found::Absent => {}
            Found::Release(_) | Found::Broken => remove(&path, say)?,
            Found::Foreign(cause) => say(format!("left {}: it is not Weft's ({cause})", path.display())),
        }
    }
    Ok(())
}

fn remove(path: &Path, say: &mut dyn FnMut(String)) -> Result<(), InstallError> {
    fs::remove_file(path).map_err(refused(path, "removed"))?;
    say(format!("removed {}", path.display()));
    Ok(())
}

/// What is at the places of the executables. The link is looked at before what it leads to may change.
fn found(bin_dir: &Path) -> Result<Vec<(PathBuf, Found)>, InstallError> {
    let look = |name: &str| {
        let path = bin_dir.join(name);
        let found = look::executable(&path, name).map_err(refused(&path, "read"))?;
        Ok((path, found))
    };
    EXECUTABLES.iter().map(|name| look(name)).collect()
}

fn own_folder() -> Result<PathBuf, InstallError> {
    let own = std::env::current_exe().map_err(refused(Path::new("/proc/self/exe"), "read"))?;
    Ok(own.parent().unwrap_or(Path::new("/")).to_owned())
}

/// The bytes of an executable of this release.
fn release(from: &Path, name: &str, own: &Version) -> Result<Vec<u8>, InstallError> {
    let path = from.join(name);
    let unusable = |cause: String| InstallError::Source { path: path.clone(), cause };
    match look::executable(&path, name).map_err(|e| unusable(e.to_string()))? {
        Found::Release(version) if version == *own => {
            fs::read(&path).map_err(|e| InstallError::Source { path, cause: e.to_string() })
        }
        Found::Release(version) => Err(unusable(format!("it is version {version}, and this ipamd is {own}"))),
        Found::Absent => Err(unusable("it is not there".to_owned())),
        Found::Broken => Err(unusable("it is incomplete".to_owned())),
        Found::Foreign(cause) => Err(unusable(cause)),
    }
}

/// The bytes of the conflist, if a runtime could use them.
fn usable_conflist(path: &Path) -> Result<Vec<u8>, InstallError> {
    let unusable = |cause: String| InstallError::Conflist { path: path.to_owned(), cause };
    let text = fs::read(path).map_err(|e| unusable(e.to_string()))?;
    match conflist::calls_weft(&text) {
        Some(true) => Ok(text),
        Some(false) => Err(unusable("no plugin in it is weft, and none has weft-ipam".to_owned())),
        None => Err(unusable("it is no JSON with a name and a list of plugins".to_owned())),
    }
}

/// Makes a folder, and those above it, as the runtime's package would.
fn make_folder(path: &Path) -> Result<(), InstallError> {
    DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(refused(path, "made"))
}

/// Held while files of the folder are changed.
fn lock(folder: &Path) -> Result<Flock<File>, InstallError> {
    let open = File::open(folder).map_err(refused(folder, "read"))?;
    Flock::lock(open, FlockArg::LockExclusive)
        .map_err(|(_, errno)| refused(folder, "locked")(io::Error::from(errno)))
}
