//! DEL without ipamd: leaves the release record, and takes the interface down if it is Weft's.
//!
//! The record comes first. Once it is written ipamd finishes whatever is left, links included, so a kill at any point
//! loses nothing; and where it cannot be written, nothing has been changed. Only what is surely Weft's is removed: the
//! runtime may call DEL for a sandbox where another plugin made the interface.

use crate::{
    link::{Kind, Link, Links},
    prev_result::PrevResult,
    stop::stop_point,
};
use ipamd_api::{ApiError, DelRequest, ErrorCode, ReleaseRecord, netns::Netns};
use std::{fmt::Write as _, io, path::Path};

/// Releases the attachment; returns a note for standard error, which may be empty.
pub(crate) fn release(
    run_dir: &Path,
    request: DelRequest,
    netns: Option<&Netns>,
    prev: Option<&PrevResult>,
) -> Result<String, ApiError> {
    let ifname = request.attachment.ifname.clone();
    let generation = request.evidence.endpoint;
    let mut note = record(run_dir, request)?;
    let removed = match (generation, netns) {
        (Some(generation), _) => remove_host_link(&generation.host_ifname()),
        (None, Some(netns)) => remove_in_sandbox(netns, &ifname, prev),
        (None, None) => Ok(()),
    };
    if let Err(cause) = removed {
        // ipamd removes it when it replays the record; a DEL that fails here would only hold the runtime up.
        let _ = writeln!(note, "{ifname} is still there: {cause}");
    }
    stop_point!("plugin.del.link-removed");
    Ok(note)
}

/// Leaves the release record alone; returns a note for standard error.
pub(crate) fn record(run_dir: &Path, request: DelRequest) -> Result<String, ApiError> {
    let record = ReleaseRecord::write(run_dir, request).map_err(|cause| {
        ApiError::new(
            ErrorCode::Journal,
            "ipamd is away, and the release of the attachment cannot be recorded; make the run directory writable, or start ipamd",
        )
        .with_details(cause.to_string())
    })?;
    stop_point!("plugin.del.recorded");
    Ok(format!("ipamd is away: the release waits for it in {}\n", record.display()))
}

/// Removes the host side of a generation, and so both ends.
fn remove_host_link(name: &str) -> io::Result<()> {
    let links = Links::open()?;
    match links.by_name(name)? {
        Some(link) if link.kind == Kind::Veth => links.delete(link.index).map(drop),
        _ => Ok(()),
    }
}

/// Removes the interface without knowing its generation, if it is one that Weft made.
fn remove_in_sandbox(netns: &Netns, ifname: &str, prev: Option<&PrevResult>) -> io::Result<()> {
    if netns.identity().cookie == ipamd_api::netns::own_cookie()? {
        return Err(io::Error::other(
            "CNI_NETNS is the host's own network namespace, where nothing is removed",
        ));
    }
    let Some(link) = netns.run(|| Links::open()?.by_name(ifname))?? else { return Ok(()) };
    match link.kind {
        Kind::Veth => {
            let host = Links::open()?;
            match link.peer.map(|peer| host.by_index(peer)).transpose()?.flatten() {
                Some(peer) if is_host_side(&peer, &link) => host.delete(peer.index).map(drop),
                _ => Err(not_ours(&link)),
            }
        }
        Kind::Macvlan if is_our_macvlan(&link, prev) => {
            netns.run(|| Links::open()?.delete(link.index))?.map(drop)
        }
        _ => Err(not_ours(&link)),
    }
}

/// Whether `peer`, a link of the host, is the other end of `link`, and named as Weft names host sides.
fn is_host_side(peer: &Link, link: &Link) -> bool {
    peer.kind == Kind::Veth
        && peer.peer == Some(link.index)
        && ipamd_api::EndpointId::of_host_ifname(&peer.name).is_some()
}

/// A macvlan has no host side. It is Weft's if an ADD of this chain answered it, or if it has a MAC that Weft derives.
fn is_our_macvlan(link: &Link, prev: Option<&PrevResult>) -> bool {
    let derived = link.mac.is_some_and(|mac| matches!(mac.0, [0x02 | 0x06, 0x57, ..]));
    derived || prev.is_some_and(|prev| prev.has_in_sandbox(&link.name))
}

fn not_ours(link: &Link) -> io::Error {
    io::Error::other(format!("{} (index {}) is nothing that Weft made", link.name, link.index))
}
