//! An open TCP connection, of which both ends are here: whether it goes on is asked again and again.

use crate::{TestNetns, poll_until};
use anyhow::{Context, Result, ensure};
use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

/// How long a dial and an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Both ends of an open connection.
#[derive(Debug)]
pub struct Connection {
    what: &'static str,
    ends: [TcpStream; 2],
}

impl Connection {
    /// Dials `address` from a namespace until `listener` takes the connection. `what` it is stands in errors.
    ///
    /// # Errors
    /// Nobody answers in time.
    pub fn open(
        what: &'static str,
        from: &TestNetns,
        address: SocketAddr,
        listener: &TcpListener,
    ) -> Result<Self> {
        let dial = || from.run(|| TcpStream::connect_timeout(&address, Duration::from_secs(1)));
        let mut client = None;
        poll_until(PATIENCE, "a connection", || {
            client = dial().ok().and_then(Result::ok);
            client.is_some()
        })
        .context(what)?;
        let (server, _) = listener.accept().context(what)?;
        let ends = [client.context(what)?, server];
        for end in &ends {
            end.set_read_timeout(Some(PATIENCE))?;
        }
        Ok(Self { what, ends })
    }

    /// Says something in each direction and hears it.
    ///
    /// # Errors
    /// It does not arrive, or something else does.
    pub fn speak(&self) -> Result<()> {
        let [client, server] = &self.ends;
        for (mut from, mut to) in [(client, server), (server, client)] {
            let mut heard = [0; 4096];
            from.write_all(&[7; 4096]).context(self.what)?;
            to.read_exact(&mut heard).context(self.what)?;
            ensure!(heard == [7; 4096], "{}: something else was heard than was said", self.what);
        }
        Ok(())
    }
}
