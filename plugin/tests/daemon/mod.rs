//! An ipamd that answers what a test laid down, by path, and remembers what it was asked.

#![allow(dead_code, reason = "each test file is a crate of its own and uses a part of this")]

use ipamd_api::SOCKET_NAME;
use serde_json::Value;
use std::{
    collections::HashMap,
    ffi::OsString,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Duration,
};
use tempfile::TempDir;
use weft::{Call, Outcome, Program};

/// One answer: HTTP status and body; `None`: close the connection without one.
pub(crate) type Canned = Option<(u16, Value)>;

/// What it was asked: path and body.
pub(crate) type Asked = Arc<Mutex<Vec<(String, Value)>>>;

/// A run directory with a daemon in it. The thread ends when this is dropped.
pub(crate) struct Daemon {
    dir: TempDir,
    asked: Asked,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    pub(crate) fn answering(answers: &[(&str, Canned)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(SOCKET_NAME)).unwrap();
        let asked = Asked::default();
        let answers: HashMap<String, Canned> =
            answers.iter().map(|(path, answer)| ((*path).to_owned(), answer.clone())).collect();
        let thread = std::thread::spawn({
            let asked = asked.clone();
            move || {
                for stream in listener.incoming() {
                    if serve(stream.unwrap(), &answers, &asked).is_none() {
                        return;
                    }
                }
            }
        });
        Self { dir, asked, thread: Some(thread) }
    }

    pub(crate) fn run_dir(&self) -> &Path {
        self.dir.path()
    }

    /// The one request it got.
    pub(crate) fn only_request(&self) -> (String, Value) {
        let asked = self.asked.lock().unwrap();
        assert_eq!(asked.len(), 1, "{asked:?}");
        asked[0].clone()
    }

    pub(crate) fn requests(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A connection without a request is the sign to end.
        drop(UnixStream::connect(self.dir.path().join(SOCKET_NAME)));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Serves one connection; `None`: nothing was asked.
fn serve(stream: UnixStream, answers: &HashMap<String, Canned>, asked: &Asked) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        if header.trim().is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("Content-Length: ") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    asked.lock().unwrap().push((path.clone(), serde_json::from_slice(&body).unwrap_or(Value::Null)));
    if let Some((status, answer)) = answers.get(&path).cloned().flatten() {
        let answer = answer.to_string();
        let head = format!("HTTP/1.1 {status} Canned\r\ncontent-length: {}\r\n\r\n", answer.len());
        let _ = reader.get_mut().write_all(format!("{head}{answer}").as_bytes());
    }
    Some(())
}

/// The variables of a call for container `c1`, interface `eth0`.
pub(crate) fn variables(command: &str, netns: &str) -> HashMap<OsString, OsString> {
    [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", netns),
        ("CNI_PATH", "/opt/cni/bin"),
    ]
    .map(|(name, value)| (name.into(), value.into()))
    .into()
}

/// Calls the library as the process would.
pub(crate) fn call(variables: HashMap<OsString, OsString>, stdin: impl Into<Vec<u8>>) -> Outcome {
    let stdin = stdin.into();
    weft::run(Call {
        program: Program::Weft,
        variables,
        stdin: Box::new(move || Ok(stdin)),
        caller: Box::new(|_| Some("testruntime".to_owned())),
        del_limit: Duration::from_millis(100),
    })
}

/// Calls it as `weft-ipam`, from a main plugin called `bridge` that a runtime has called.
pub(crate) fn call_ipam(variables: HashMap<OsString, OsString>, stdin: impl Into<Vec<u8>>) -> Outcome {
    let stdin = stdin.into();
    weft::run(Call {
        program: Program::WeftIpam,
        variables,
        stdin: Box::new(move || Ok(stdin)),
        caller: Box::new(|above| ["bridge", "testruntime"].get(above).map(|name| (*name).to_owned())),
        del_limit: Duration::from_millis(100),
    })
}

/// Standard output as JSON.
pub(crate) fn json(outcome: &Outcome) -> Value {
    serde_json::from_slice(&outcome.stdout)
        .unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(&outcome.stdout)))
}

/// The only record in a run directory's folder of releases.
pub(crate) fn only_record(run_dir: &Path) -> ipamd_api::ReleaseRecord {
    let records: Vec<PathBuf> = std::fs::read_dir(run_dir.join(ipamd_api::RELEASED_DIR))
        .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
        .unwrap_or_default();
    assert_eq!(records.len(), 1, "{records:?}");
    serde_json::from_slice(&std::fs::read(&records[0]).unwrap()).unwrap()
}
