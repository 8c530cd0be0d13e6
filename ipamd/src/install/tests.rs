//! Decisions, answers, and folders as they can be. Executables are scripts here; `tests/tests/install` has the real ones.

use super::*;
use plan::{decide, looks_cut, version_in};
use std::os::unix::fs::PermissionsExt as _;

fn version(text: &str) -> Version {
    Version::parse(text).unwrap()
}

fn release(text: &str) -> Found {
    Found::Release(version(text))
}

#[test]
fn the_newest_that_is_there_decides() {
    let installs: [&[Found]; 6] = [
        &[],
        &[Found::Absent, Found::Absent],
        &[release("1.2.3"), release("1.2.3")],
        &[release("1.2.2"), Found::Broken],
        // A release is newer than its own candidates.
        &[release("1.2.3-rc.1")],
        &[release("0.9.0"), release("1.2.2")],
    ];
    let own = version("1.2.3");
    let named = |found: &[Found]| -> Vec<_> {
        found.iter().enumerate().map(|(i, f)| (PathBuf::from(i.to_string()), f.clone())).collect()
    };
    for found in installs {
        assert_eq!(decide(&own, &named(found), false).unwrap(), Decision::Install, "{found:?}");
    }
    for (found, newest) in [
        (vec![release("1.10.0"), release("1.2.2")], "0"),
        (vec![release("1.2.2"), release("1.2.4"), Found::Broken], "1"),
        (vec![release("1.3.0"), release("2.0.0-rc.1")], "1"),
    ] {
        let Decision::Keep { path, .. } = decide(&own, &named(&found), false).unwrap() else {
            panic!("{found:?} was to be kept")
        };
        assert_eq!(path, Path::new(newest), "{found:?}");
        assert_eq!(decide(&own, &named(&found), true).unwrap(), Decision::Install, "{found:?}");
    }
}

#[test]
fn what_is_not_wefts_stops_all_of_it() {
    let found = [("a".into(), release("9.0.0")), ("b".into(), Found::Foreign("odd".to_owned()))];
    for downgrade in [false, true] {
        let error = decide(&version("1.0.0"), &found, downgrade).unwrap_err().to_string();
        assert!(error.starts_with("b is not Weft's (odd)"), "{error}");
    }
}

#[test]
fn versions_are_found_in_what_executables_say() {
    for (said, name, expected) in [
        ("CNI plugin weft v0.1.0, for container runtimes to call\n", "weft", Some("0.1.0")),
        ("CNI plugin weft-ipam v1.0.0-rc.2, for main plugins", "weft-ipam", Some("1.0.0-rc.2")),
        ("CNI plugin weft-ipam v1.0.0, for main plugins", "weft", None),
        ("netctl 12.3.4\n", "netctl", Some("12.3.4")),
        ("netctl version 5", "netctl", None),
        ("netctl", "netctl", None),
        ("", "weft", None),
    ] {
        assert_eq!(version_in(said, name), expected.map(version), "{said:?}");
    }
}

#[test]
fn only_the_beginning_of_an_executable_looks_cut() {
    for cut in [&b""[..], b"\x7fE", b"\x7fELF\x02\x01", &[0; 64]] {
        assert!(looks_cut(cut), "{cut:?}");
    }
    for other in [&b"#!/bin/sh\n"[..], b"echo hello\n", b"\0\0a"] {
        assert!(!looks_cut(other), "{other:?}");
    }
}

#[test]
fn names_of_conflists_stay_in_their_folder() {
    for name in ["../x.conflist", "/x.conflist", "x", "", "a/b.conflist", ".."] {
        let arguments = ["install-cni", "--conflist-name", name].map(OsString::from);
        let error = run(arguments, &mut io::sink()).unwrap_err();
        assert!(matches!(error, InstallError::Name(_)), "{name}: {error}");
    }
}

/// A release of scripts, and the folders of a runtime.
struct Scene {
    dir: tempfile::TempDir,
}

const CONFLIST: &str = r#"{"cniVersion":"1.0.0","name":"weft","plugins":[{"type":"weft"}]}"#;

impl Scene {
    fn new() -> Self {
        let scene = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(scene.path("release")).unwrap();
        scene.script("release/weft", &format!("CNI plugin weft v{}, for", env!("CARGO_PKG_VERSION")));
        scene.script("release/netctl", &format!("netctl {}", env!("CARGO_PKG_VERSION")));
        fs::write(scene.path("conflist"), CONFLIST).unwrap();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn script(&self, name: &str, says: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // By a rename: another test that is just forking may hold a file open that this one has written.
        Staged::file(&path, 0o755, format!("#!/bin/sh\necho '{says}'\n").as_bytes())
            .unwrap()
            .commit()
            .unwrap();
    }

    fn run(&self, more: &[&str]) -> Result<String, InstallError> {
        let (bin, conf) = (self.path("bin"), self.path("conf"));
        let mut arguments: Vec<OsString> = vec!["install-cni".into()];
        arguments.extend(["--bin-dir".into(), bin.into(), "--conf-dir".into(), conf.into()]);
        arguments.extend(more.iter().map(OsString::from));
        if !more.contains(&"--uninstall") {
            arguments.extend(["--from".into(), self.path("release").into()]);
            arguments.extend(["--conflist".into(), self.path("conflist").into()]);
        }
        let mut out = Vec::new();
        run(arguments, &mut out).map(|()| String::from_utf8(out).unwrap())
    }

    /// Names in both folders.
    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for folder in ["bin", "conf"] {
            for entry in fs::read_dir(self.path(folder)).into_iter().flatten() {
                names.push(entry.unwrap().file_name().into_string().unwrap());
            }
        }
        names.sort();
        names
    }
}

#[test]
fn a_release_is_installed_once_and_removed_again() {
    let scene = Scene::new();
    let said = scene.run(&[]).unwrap();
    let order: Vec<_> = said.lines().map(|line| line.rsplit('/').next().unwrap()).collect();
    assert_eq!(order, ["weft", "weft-ipam", "netctl", "10-weft.conflist"]);
    let mode = |name: &str| fs::metadata(scene.path(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("bin/weft"), mode("conf/10-weft.conflist")), (0o755, 0o644));
    assert_eq!(fs::read_link(scene.path("bin/weft-ipam")).unwrap(), Path::new("weft"));
    // The scripts do not know by which name they are called, so the link cannot be asked.
    fs::remove_file(scene.path("bin/weft-ipam")).unwrap();
    let again = scene.run(&[]).unwrap();
    assert_eq!(again.matches("unchanged ").count(), 3, "{again}");

    fs::write(scene.path("bin/bridge"), "").unwrap();
    fs::remove_file(scene.path("bin/weft-ipam")).unwrap();
    scene.run(&["--uninstall"]).unwrap();
    assert_eq!(scene.names(), ["bridge"]);
    assert_eq!(scene.run(&["--uninstall"]).unwrap(), "");
}

#[test]
fn a_newer_release_is_kept_whole_unless_told_otherwise() {
    let scene = Scene::new();
    scene.script("bin/netctl", "netctl 99.0.0");
    let said = scene.run(&[]).unwrap();
    assert!(said.contains("netctl is of the newer release 99.0.0"), "{said}");
    assert_eq!(scene.names(), ["netctl"]);
    scene.run(&["--downgrade"]).unwrap();
    assert_eq!(scene.names(), ["10-weft.conflist", "netctl", "weft", "weft-ipam"]);
    assert_eq!(fs::read(scene.path("bin/netctl")).unwrap(), fs::read(scene.path("release/netctl")).unwrap());
}

#[test]
fn what_others_have_there_is_neither_replaced_nor_removed() {
    for (name, content) in [
        ("bin/netctl", "#!/bin/sh\necho netctl of NetworkThing\n"),
        ("bin/weft", "a text"),
        ("conf/10-weft.conflist", r#"{"name":"x","plugins":[{"type":"bridge"}]}"#),
    ] {
        let scene = Scene::new();
        let path = scene.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        Staged::file(&path, 0o755, content.as_bytes()).unwrap().commit().unwrap();
        let error = scene.run(&["--downgrade"]).unwrap_err().to_string();
        assert!(error.contains(&*path.to_string_lossy()) && error.contains("left as it is"), "{error}");
        let said = scene.run(&["--uninstall"]).unwrap();
        assert!(said.starts_with("left "), "{said}");
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
        assert_eq!(scene.names(), [path.file_name().unwrap().to_str().unwrap()]);
    }
}

#[test]
fn a_release_of_two_versions_or_without_a_conflist_is_refused_before_anything_changes() {
    let scene = Scene::new();
    scene.script("release/netctl", "netctl 0.0.1");
    let error = scene.run(&[]).unwrap_err().to_string();
    assert!(error.contains("0.0.1") && error.contains("one release"), "{error}");
    for text in ["", "{", "[]", r#"{"name":"x","plugins":[{"type":"bridge"}]}"#] {
        let scene = Scene::new();
        fs::write(scene.path("conflist"), text).unwrap();
        let error = scene.run(&[]).unwrap_err().to_string();
        assert!(error.contains("mend it"), "{text}: {error}");
        assert!(scene.names().is_empty());
    }
}

#[test]
fn half_written_files_are_replaced_and_other_conflists_are_named() {
    let scene = Scene::new();
    for name in ["bin", "conf"] {
        fs::create_dir(scene.path(name)).unwrap();
    }
    Staged::file(&scene.path("bin/weft"), 0o755, b"\x7fELF\x02\x01\x01").unwrap().commit().unwrap();
    fs::write(scene.path("bin/weft.new"), "left by one that was killed").unwrap();
    fs::write(scene.path("conf/10-weft.conflist"), &CONFLIST[..20]).unwrap();
    fs::write(scene.path("conf/05-other.conflist"), CONFLIST).unwrap();
    let said = scene.run(&[]).unwrap();
    assert!(said.contains("05-other.conflist calls weft, too"), "{said}");
    assert_eq!(fs::read_to_string(scene.path("conf/10-weft.conflist")).unwrap(), CONFLIST);
    let expected = ["05-other.conflist", "10-weft.conflist", "netctl", "weft", "weft-ipam"];
    assert_eq!(scene.names(), expected);
}
