//! Which of its two plugins the executable is: its own name decides, since one file serves both.

use std::{ffi::OsStr, path::Path};

/// A plugin that the executable can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `weft`: a main plugin.
    Weft,
    /// `weft-ipam`: addresses for the main plugins of others.
    WeftIpam,
}

impl Program {
    /// The plugin of the first word of a command line, the path that the caller ran. Anything but `weft-ipam` is `weft`.
    pub fn of(first_word: &OsStr) -> Self {
        let name = Path::new(first_word).file_name();
        if name.is_some_and(|name| name == Self::WeftIpam.name()) { Self::WeftIpam } else { Self::Weft }
    }

    /// Its name, as netconfs have it in `type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weft => "weft",
            Self::WeftIpam => "weft-ipam",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_file_decides() {
        for (word, program) in [
            ("weft", Program::Weft),
            ("/opt/cni/bin/weft", Program::Weft),
            ("weft-ipam", Program::WeftIpam),
            ("/opt/cni/bin/weft-ipam", Program::WeftIpam),
            ("/opt/weft-ipam/weft", Program::Weft),
            ("weft-ipam-old", Program::Weft),
            ("", Program::Weft),
        ] {
            assert_eq!(Program::of(OsStr::new(word)), program, "{word:?}");
        }
    }
}
