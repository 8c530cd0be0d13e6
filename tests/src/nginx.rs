//! nginx inside a namespace, which says whom it takes its clients for.

use crate::{Guarded, TestNetns, poll_until};
use anyhow::{Context, Result};
use std::{fs, process::Stdio, time::Duration};

/// How long it may take to listen.
const PATIENCE: Duration = Duration::from_secs(15);

/// A running nginx that answers `GET /` with `<name> <client's address> <its port>`; it ends with this value.
#[derive(Debug)]
pub struct Nginx {
    _server: Guarded,
}

impl Nginx {
    /// Starts it inside, at a port of every address of both families.
    ///
    /// # Errors
    /// It is not installed (`cargo xtask setup`), or the port is taken.
    pub fn start(netns: &TestNetns, name: &str, port: u16) -> Result<Self> {
        let dir = netns.dir().display();
        let config = format!(
            "daemon off;\nmaster_process off;\nuser root;\npid {dir}/nginx.pid;\nerror_log stderr;\n\
             events {{ worker_connections 512; }}\n\
             http {{\naccess_log off;\nclient_body_temp_path {dir}/body;\nproxy_temp_path {dir}/proxy;\n\
             fastcgi_temp_path {dir}/fastcgi;\nuwsgi_temp_path {dir}/uwsgi;\nscgi_temp_path {dir}/scgi;\n\
             server {{\nlisten {port};\nlisten [::]:{port};\nlocation / {{\n\
             return 200 \"{name} $remote_addr $remote_port\\n\";\n}}\n}}\n}}\n"
        );
        let path = netns.dir().join("nginx.conf");
        fs::write(&path, config).with_context(|| format!("writing {}", path.display()))?;
        let mut command = netns.command("/usr/sbin/nginx");
        command.arg("-c").arg(&path).arg("-p").arg(netns.dir()).stdout(Stdio::null());
        let server = Guarded::spawn(&mut command).context("is nginx-light installed?")?;
        let line = format!("ss -Hltn sport = :{port}");
        let listens = || netns.sh(&line).is_ok_and(|said| said.lines().count() == 2);
        poll_until(PATIENCE, "nginx to listen", listens)?;
        Ok(Self { _server: server })
    }
}
