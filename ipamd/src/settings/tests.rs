//! Strength of the sources, what is refused, and the documentation.

use super::*;

fn read(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    let arguments = std::iter::once("ipamd").chain(arguments.iter().copied()).map(OsString::from);
    let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Settings::read(arguments, &environment)
}

#[test]
fn flags_beat_variables_beat_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ipamd.toml");
    std::fs::write(
        &file,
        "mtu = 1400\ncool_down = 5\nnode_name = \"file\"\ncni_conf_dirs = [\"/a\", \"/b\"]\n",
    )
    .unwrap();
    let config = file.to_str().unwrap();
    let s = read(&["--config", config, "--mtu", "1300"], &[("WEFT_MTU", "1350"), ("WEFT_NODE_NAME", "env")])
        .unwrap();
    assert_eq!((s.mtu, s.cool_down, s.node_name.as_str()), (1300, Seconds(5), "env"));
    assert_eq!(s.cni_conf_dirs.0, [PathBuf::from("/a"), PathBuf::from("/b")]);
}

#[test]
fn what_is_wrong_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ipamd.toml");
    for (text, expected) in [
        ("mtuu = 1", "`mtuu`"),
        ("mtu = \"big\"", "`mtu`"),
        ("mtu = ", "line 1"),
        ("[mtu]\na = 1", "`mtu`"),
        ("address_pools = [\"10.0.0.0/8\"]", "CIDR:length"),
        ("address_pools = [\"10.0.0.0/8:4\"]", "8 to 30"),
        ("store = \"redis\"", "`etcd`"),
        ("etcd_timeout = \"2s\"", "milliseconds"),
        ("nat_ports = \"5\"", "two ports"),
        ("nat_ports = \"5-4\"", "two ports"),
        ("publish_ports = \"0-4\"", "two ports"),
        ("publish_ports = \"1-65536\"", "two ports"),
        ("publish_deny = [\"ten\"]", "CIDR"),
        ("drop_event_interval = -1", "milliseconds"),
        ("metrics_listen = [\"9464\"]", "127.0.0.1:9464"),
        ("metrics_listen = [\"localhost:9464\"]", "127.0.0.1:9464"),
    ] {
        std::fs::write(&file, text).unwrap();
        let error = read(&["--config", file.to_str().unwrap()], &[]).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let error = read(&["--config", "/nowhere"], &[]).unwrap_err().to_string();
    assert!(error.contains("/nowhere"), "{error}");
}

#[test]
fn every_default_reads_back() {
    let mut settings = Settings::default();
    for (name, text) in Settings::default().shown() {
        settings.set(name, &text, "test").unwrap();
    }
    assert_eq!(settings.shown(), Settings::default().shown());
}

#[test]
fn the_documentation_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    if std::env::var_os("WEFT_BLESS").is_some() {
        std::fs::write(&path, documentation()).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        stored == documentation(),
        "docs/configuration.md is stale: run WEFT_BLESS=1 cargo test -p ipamd settings"
    );
}
