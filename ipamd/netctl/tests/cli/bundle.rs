//! `support-bundle`: what is in it, and what never is.

use crate::{
    daemon::{Daemon, bare_endpoint, endpoint, flows, json, status, web},
    run, run_in,
};
use flate2::read::GzDecoder;
use ipamd_api::{FlowList, Status};
use netctl::Exit;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
};

/// What is planted, each in a place of its own.
const SECRETS: [&str; 9] = [
    "in-the-url-of-settings",
    "in-a-value-of-settings",
    "in-the-file-of-the-password",
    "in-the-environment-of-ipamd",
    "on-the-command-line-of-ipamd",
    "in-the-url-of-a-status",
    "in-a-label-of-an-endpoint",
    "in-a-line-of-the-log",
    "aW4tYS1wcml2YXRlLWtleQ==",
];

/// A process that was started as an ipamd might be.
struct Ipamd(Child);

impl Ipamd {
    fn start() -> Self {
        let mut command = Command::new("sh");
        // It waits for a line that never comes.
        command.args(["-c", "read line", "ipamd", "--etcd-password", SECRETS[4]]).stdin(Stdio::piped());
        command.env("WEFT_ETCD_ENDPOINTS", format!("https://root:{}@192.0.2.1:2379", SECRETS[3]));
        command.env("WEFT_NODE_NAME", "n1").env("HOME", "/somewhere/private");
        Self(command.spawn().unwrap())
    }
}

impl Drop for Ipamd {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Every file of a bundle.
fn unpacked(file: &Path) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(GzDecoder::new(fs::File::open(file).unwrap()));
    let mut files = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_string_lossy().into_owned();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        files.insert(path, text);
    }
    files
}

#[test]
fn what_is_planted_everywhere_is_nowhere_in_the_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", SECRETS[8]);
    fs::write(at("password"), format!("{}\n", SECRETS[2])).unwrap();
    fs::write(at("client.key"), &pem).unwrap();
    let settings = format!(
        "store = \"etcd\"\netcd_endpoints = [\"https://root:{}@192.0.2.1:2379\"]\netcd_password = \"{}\"\n\
         etcd_password_file = \"{}\"\netcd_key_file = \"{}\"\n",
        SECRETS[0],
        SECRETS[1],
        at("password").display(),
        at("client.key").display()
    );
    fs::write(at("ipamd.toml"), settings).unwrap();
    let log = format!("a line\nAuthorization: Basic {}\nread {}\n{pem}last line\n", SECRETS[7], SECRETS[2]);
    fs::write(at("ipamd.log"), log).unwrap();
    let ipamd = Ipamd::start();
    let mut parts = status(true);
    parts.parts[0].message = format!("etcd at https://weft:{}@192.0.2.1:2379", SECRETS[5]);
    let mut hostile = endpoint();
    hostile.options.labels.insert("API_TOKEN".to_owned(), SECRETS[6].to_owned());
    let list = FlowList { flows: flows(), matching: 3, total: 3, capacity: 10 };
    let daemon = Daemon::start(&[
        ("GET /v1/status", 200, json(&Status { pid: ipamd.0.id(), ..parts })),
        ("GET /v1/endpoints", 200, json(&[hostile.clone(), bare_endpoint()])),
        ("GET /v1/networks", 200, json(&[web()])),
        ("POST /v1/flows", 200, json(&list)),
        ("GET /v1/inspect/web", 200, json(&hostile)),
        (&format!("GET /v1/inspect/{}", hostile.attachment.container_id), 200, json(&hostile)),
    ]);
    let file = at("bundle.tar.gz");
    let arguments = [
        "support-bundle",
        file.to_str().unwrap(),
        "--settings",
        at("ipamd.toml").to_str().unwrap(),
        "--log",
        at("ipamd.log").to_str().unwrap(),
    ]
    .map(str::to_owned);
    let ran = run(&daemon, &arguments.each_ref().map(String::as_str));
    assert_eq!((ran.exit, ran.err.as_str()), (Exit::Done, ""));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    let files = unpacked(&file);
    for secret in SECRETS {
        let found: Vec<&String> =
            files.iter().filter(|(_, text)| text.contains(secret)).map(|(path, _)| path).collect();
        assert!(found.is_empty(), "{secret} is in {found:?}");
        assert!(!ran.out.contains(secret), "{secret} is on standard output");
    }
    // What is worth to be seen is there all the same.
    for (path, words) in [
        ("settings/ipamd.toml", "etcd_key_file = "),
        ("settings/ipamd.toml", "https://[removed]@192.0.2.1:2379"),
        ("settings/process.txt", "WEFT_NODE_NAME=n1"),
        ("settings/process.txt", "Max open files"),
        ("api/status.json", "\"ready\": true"),
        ("api/flows.json", "masquerade"),
        ("api/inspect/network-web.json", "web-0"),
        ("log/file.log", "last line"),
        ("host/uname.txt", "Linux"),
        ("host/links.txt", "lo"),
        ("host/routes4.txt", ""),
        ("missing.txt", "api/doctor.json: "),
        ("versions.txt", "netctl"),
    ] {
        let text = files.get(path).unwrap_or_else(|| panic!("no {path} in {:?}", files.keys()));
        assert!(text.contains(words), "{path}: {text}");
    }
    assert!(!files["settings/process.txt"].contains("/somewhere/private"));
    assert!(ran.out.contains("missing: api/doctor.json"), "{}", ran.out);
}

#[test]
fn without_ipamd_there_is_a_bundle_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bundle.tar.gz");
    fs::write(&file, "older").unwrap();
    let ran = run_in(dir.path(), &["support-bundle", file.to_str().unwrap(), "-o", "json"], false, false);
    assert_eq!((ran.exit, ran.err.as_str()), (Exit::Done, ""));
    let said: Value = serde_json::from_str(&ran.out).unwrap();
    let missing = said["missing"].as_array().unwrap();
    assert!(missing.iter().any(|m| m.as_str().unwrap().starts_with("api/status.json: ")), "{said}");
    let files = unpacked(&file);
    assert!(
        files.contains_key("host/links.txt") && !files.contains_key("api/status.json"),
        "{:?}",
        files.keys()
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn where_nothing_can_be_written_nothing_is() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("missing/bundle.tar.gz");
    let ran = run_in(dir.path(), &["support-bundle", file.to_str().unwrap()], false, false);
    assert_eq!((ran.exit, ran.out.as_str()), (Exit::Refused, ""));
    assert!(ran.err.contains("cannot be written") && ran.err.contains("name another FILE"), "{}", ran.err);
    assert!(!dir.path().join("missing").exists());
}
