//! `<state-dir>/node-id`: by what a machine is told from another one of its name. Made once, mode 0600, whole or absent.

use crate::durable;
use anyhow::{Context as _, bail};
use std::{fs, io::ErrorKind, path::Path};

/// Name of the file inside the state directory.
pub const ID_NAME: &str = "node-id";

/// Hexadecimal digits of an id: 128 random bits.
const DIGITS: usize = 32;

/// The machine's id; made if there is none.
///
/// # Errors
/// The file cannot be read or written, or is none that Weft wrote.
pub fn node_id(state_dir: &Path) -> anyhow::Result<String> {
    let path = state_dir.join(ID_NAME);
    match fs::read_to_string(&path) {
        Ok(text) => {
            let id = text.trim_end();
            if id.len() == DIGITS && id.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Ok(id.to_owned());
            }
            bail!(
                "{} is damaged: restore it, or remove it, and the node from the cluster by `netctl node rm`",
                path.display()
            );
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
    let id = random_id()?;
    durable::write(&path, format!("{id}\n").as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(id)
}

fn random_id() -> anyhow::Result<String> {
    let mut bytes = [0u8; DIGITS / 2];
    // SAFETY: the pointer and the length are those of a live local buffer; at most 256 bytes come at once or not at all.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if usize::try_from(got) != Ok(bytes.len()) {
        bail!("no random numbers for the node's id: {}", nix::errno::Errno::last());
    }
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn an_id_is_made_once_and_another_one_for_another_machine() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let id = node_id(one.path()).unwrap();
        assert_eq!((id.len(), node_id(one.path()).unwrap()), (DIGITS, id.clone()));
        assert_ne!(node_id(other.path()).unwrap(), id);
        let path = one.path().join(ID_NAME);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(one.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn a_damaged_id_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(ID_NAME);
        for text in ["", "x", &"g".repeat(DIGITS)] {
            fs::write(&path, text).unwrap();
            let error = node_id(dir.path()).unwrap_err().to_string();
            assert!(error.contains("is damaged") && error.contains("netctl node rm"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), *text);
        }
    }
}
