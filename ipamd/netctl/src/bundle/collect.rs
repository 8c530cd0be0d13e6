//! Asking: ipamd, programs, files. What does not answer is named with its reason, and stops nothing else.

use super::{
    redact::redacted,
    sources::{CALLS, FILES, PROGRAMS},
};
use archive::Tree;
use ipamd_api::{Client, EndpointView, FlowFilter, Status, path};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Bytes that are kept of a program's output, and of the end of a log.
const ROOM: u64 = 8 << 20;

/// How long a program may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Containers that are inspected one by one.
const INSPECTED: usize = 500;

/// Flows that are listed.
const FLOWS: usize = 20_000;

/// Where everything comes from.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) run_dir: PathBuf,
    pub(crate) settings: PathBuf,
    pub(crate) log: Option<PathBuf>,
}

/// A bundle in the making.
pub(crate) struct Collection {
    pub(crate) tree: Tree,
    /// What is missing, and why.
    pub(crate) missing: Vec<String>,
    secrets: Vec<String>,
}

impl Collection {
    /// Everything that there is to be had.
    pub(crate) fn of(node: &Node) -> Self {
        let mut made = Self { tree: Tree::new(), missing: Vec::new(), secrets: Vec::new() };
        made.settings(&node.settings);
        let pid = made.calls(&Client::new(&node.run_dir));
        if let Some(pid) = pid {
            made.process(pid);
        }
        for (name, line) in PROGRAMS {
            made.program(name, line);
        }
        for (name, file) in FILES {
            made.file(name, Path::new(file));
        }
        if let Some(log) = &node.log {
            made.file("log/file.log", log);
        }
        let version = format!("netctl {}\n", env!("CARGO_PKG_VERSION"));
        made.put("versions.txt", version.as_bytes());
        let missing = made.missing.join("\n") + "\n";
        made.put("missing.txt", missing.as_bytes());
        made
    }

    /// The one way in: nothing gets into the bundle past it.
    fn put(&mut self, name: &str, bytes: &[u8]) {
        let text = redacted(&String::from_utf8_lossy(bytes), &self.secrets);
        self.tree.file(name, text, 0o600);
    }

    fn miss(&mut self, name: &str, cause: impl std::fmt::Display) {
        self.missing.push(redacted(&format!("{name}: {cause}"), &self.secrets));
    }

    /// The settings, and what file of a password they name: only to know what must not get in.
    fn settings(&mut self, file: &Path) {
        match std::fs::read_to_string(file) {
            Ok(text) => {
                let named = text.lines().filter_map(|line| line.trim().strip_prefix("etcd_password_file"));
                let paths = named.filter_map(|rest| rest.split('"').nth(1));
                let read = paths.filter_map(|path| std::fs::read_to_string(path).ok());
                self.secrets.extend(read.map(|secret| secret.trim().to_owned()).filter(|s| !s.is_empty()));
                self.put("settings/ipamd.toml", text.as_bytes());
            }
            Err(cause) => self.miss("settings/ipamd.toml", format!("{}: {cause}", file.display())),
        }
    }

    /// Asks ipamd. Returns its process, if it answers.
    fn calls(&mut self, client: &Client) -> Option<u32> {
        let mut pid = None;
        let mut containers = BTreeSet::new();
        let mut networks = Vec::new();
        for (name, path) in CALLS {
            let answer: Value = match client.get(path) {
                Ok(answer) => answer,
                Err(cause) => {
                    self.miss(name, cause.to_string().trim());
                    continue;
                }
            };
            match path {
                path::STATUS => pid = serde_json::from_value::<Status>(answer.clone()).ok().map(|s| s.pid),
                path::ENDPOINTS => {
                    let endpoints: Vec<EndpointView> =
                        serde_json::from_value(answer.clone()).unwrap_or_default();
                    containers.extend(endpoints.into_iter().map(|e| e.attachment.container_id));
                }
                path::NETWORKS => {
                    let all = answer.as_array().into_iter().flatten();
                    networks.extend(all.filter_map(|n| n.get("name")?.as_str().map(str::to_owned)));
                }
                _ => {}
            }
            self.json(name, &answer);
        }
        // Who did not answer this answers nothing.
        let pid = pid?;
        let filter = FlowFilter { limit: Some(FLOWS), ..FlowFilter::default() };
        match client.post::<_, Value>(path::FLOWS, &filter) {
            Ok(answer) => self.json("api/flows.json", &answer),
            Err(cause) => self.miss("api/flows.json", cause.to_string().trim()),
        }
        self.inspect(client, "node", "node");
        for network in &networks {
            self.inspect(client, &format!("network-{network}"), network);
        }
        for container in containers.iter().take(INSPECTED) {
            self.inspect(client, &format!("container-{container}"), container);
        }
        if containers.len() > INSPECTED {
            self.miss(
                "api/inspect",
                format!("only {INSPECTED} of {} containers were inspected", containers.len()),
            );
        }
        Some(pid)
    }

    fn inspect(&mut self, client: &Client, file: &str, what: &str) {
        // A name of others never becomes a path.
        let safe: String = file
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' })
            .collect();
        let name = format!("api/inspect/{safe}.json");
        match client.get::<Value>(&format!("{}/{what}", path::INSPECT)) {
            Ok(answer) => self.json(&name, &answer),
            Err(cause) => self.miss(&name, cause.to_string().trim()),
        }
    }

    fn json(&mut self, name: &str, answer: &Value) {
        match serde_json::to_string_pretty(answer) {
            Ok(text) => self.put(name, (text + "\n").as_bytes()),
            Err(cause) => self.miss(name, cause),
        }
    }

    /// How ipamd was started. Of its environment only what is Weft's.
    fn process(&mut self, pid: u32) {
        let read = |what: &str| std::fs::read(format!("/proc/{pid}/{what}"));
        let words = |bytes: Vec<u8>| -> Vec<String> {
            bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
        };
        match (read("cmdline"), read("environ"), read("limits")) {
            (Ok(line), Ok(environment), Ok(limits)) => {
                let ours: Vec<String> =
                    words(environment).into_iter().filter(|v| v.starts_with("WEFT_")).collect();
                let limits = String::from_utf8_lossy(&limits);
                let text = format!("{}\n\n{}\n\n{limits}", words(line).join(" ").trim_end(), ours.join("\n"));
                self.put("settings/process.txt", text.as_bytes());
            }
            (Err(cause), ..) | (_, Err(cause), _) | (.., Err(cause)) => {
                self.miss("settings/process.txt", cause);
            }
        }
    }

    fn program(&mut self, name: &str, line: &str) {
        match output(line) {
            Ok(bytes) => self.put(name, &bytes),
            Err(cause) => self.miss(name, format!("{line}: {cause}")),
        }
    }

    /// The end of a file.
    fn file(&mut self, name: &str, path: &Path) {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(path)?;
            let length = file.metadata()?.len();
            if length > ROOM {
                file.seek(SeekFrom::Start(length - ROOM))?;
            }
            let mut bytes = Vec::new();
            file.take(ROOM).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        match read() {
            Ok(bytes) => self.put(name, &bytes),
            Err(cause) => self.miss(name, format!("{}: {cause}", path.display())),
        }
    }
}

/// Standard output of a program, up to some length; that it failed is an error with what it said.
fn output(line: &str) -> Result<Vec<u8>, String> {
    let mut words = line.split(' ');
    let program = words.next().unwrap_or_default();
    let spawned = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = spawned.map_err(|cause| cause.to_string())?;
    let (out, err) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let ended = wait(&mut child);
    let collect = |handle: thread::JoinHandle<Vec<u8>>| handle.join().unwrap_or_default();
    let (out, err) = (collect(out), collect(err));
    match ended {
        // Some tools complain about single values and print the others.
        Ok(success) if success || !out.is_empty() => Ok(out),
        Ok(_) => Err(String::from_utf8_lossy(&err).lines().last().unwrap_or("it failed").to_owned()),
        Err(cause) => Err(cause),
    }
}

/// Reads all, keeps the beginning: who is not read would wait forever.
fn reader(from: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut kept = Vec::new();
        if let Some(mut from) = from {
            // What cannot be read ends here, with what there was.
            let _ = from.by_ref().take(ROOM).read_to_end(&mut kept);
            let _ = io::copy(&mut from, &mut io::sink());
        }
        kept
    })
}

/// Whether it succeeded. One that takes too long is ended.
fn wait(child: &mut Child) -> Result<bool, String> {
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status.success()),
            Ok(None) if begun.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                // Both fail only for one that has just ended.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("it took longer than {} s", PATIENCE.as_secs()));
            }
            Err(cause) => return Err(cause.to_string()),
        }
    }
}
