//! Networks in the store: one key for each, and the counter that gives them numbers.
//!
//! A network is made in two steps on its own key: first as `pending`, which nobody uses; then, when a list that was read after that
//! write shows no other network with one of its pools or its VNI, by a compare-and-swap to what it is. Of two pending ones that clash the
//! earlier write wins, so at most one of them is ever used. One whose maker died is cleared away by whoever it stands in the way of.

mod removal;

pub use removal::NetworkRemoval;

use super::{
    Cluster, ClusterError, Listed, Result, TRIES,
    codec::{decode, doing, encode},
};
use crate::{
    ipam::Span,
    store::{Change, Entry, Expected, Revision, Swap, Watch},
};
use ipamd_api::{Network, Overlay};
use serde::{Deserialize, Serialize};
use std::time::Duration;

const NETWORKS: &str = "/weft/v1/networks/";
const NETWORK_ID: &str = "/weft/v1/ids/network";

/// How long a pending network of another maker is waited for. It needs four calls to the store.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(50);

/// What became of a network that was to be created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Creation {
    /// It is stored, with its number.
    Created(Network),
    /// Another one of that name was there first; it may differ.
    Exists(Network),
    /// This other one has one of its pools or its VNI.
    Clashes(Network),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Counter {
    next: u32,
}

/// A network that is being made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pending {
    pending: Network,
}

/// A network that is being removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Removing {
    removing: Network,
}

/// What the key of a network holds.
enum Stored {
    Network(Network),
    Pending(Network),
    Removing(Network),
}

fn read(entry: &Entry) -> Result<Stored> {
    match decode::<Pending>(entry) {
        Ok(Pending { pending }) => return Ok(Stored::Pending(pending)),
        Err(error @ ClusterError::Newer { .. }) => return Err(error),
        Err(_) => {}
    }
    match decode::<Removing>(entry) {
        Ok(Removing { removing }) => Ok(Stored::Removing(removing)),
        Err(_) => decode(entry).map(Stored::Network),
    }
}

/// The name in a network's key.
pub fn network_of_key(key: &str) -> Option<&str> {
    key.strip_prefix(NETWORKS)
}

/// The network of a store entry; `None` while it is being made.
///
/// # Errors
/// It cannot be understood.
pub fn network_in(entry: &Entry) -> Result<Option<Network>> {
    read(entry).map(|stored| match stored {
        Stored::Network(network) | Stored::Removing(network) => Some(network),
        Stored::Pending(_) => None,
    })
}

fn have_pools_in_common(one: &Network, other: &Network) -> bool {
    let overlaps = |subnet| other.pools.iter().any(|p| Span::of(p.subnet).overlaps(&Span::of(subnet)));
    one.pools.iter().any(|p| overlaps(p.subnet))
}

fn have_one_vni(one: &Network, other: &Network) -> bool {
    matches!((one.overlay, other.overlay), (Some(one), Some(other)) if one.vni == other.vni)
}

/// Who stands in the way of a pending network.
enum Rival {
    Nobody,
    Network(Network),
    /// One that is being made too, and was first.
    Pending(Entry),
}

impl Cluster {
    /// All networks, by name, without those that are being made.
    ///
    /// # Errors
    /// The store fails.
    pub async fn networks(&self) -> Result<Listed<Network>> {
        Ok(self.networks_at().await?.0)
    }

    /// The same, and the revision from which they are to be watched.
    ///
    /// # Errors
    /// The store fails.
    pub async fn networks_at(&self) -> Result<(Listed<Network>, Revision)> {
        let found = self.store.list(NETWORKS).await.map_err(doing("list the networks"))?;
        let ready = found.entries.iter().filter_map(|entry| network_in(entry).transpose());
        Ok((ready.map(|network| network.map(|n| (n, None))).collect(), found.revision))
    }

    /// Watches the networks from the write `after` on: each update means that they are to be listed anew.
    ///
    /// # Errors
    /// The store fails.
    pub async fn watch_networks(&self, after: Revision) -> Result<Box<dyn Watch>> {
        self.store.watch(NETWORKS, after).await.map_err(doing("watch the networks"))
    }

    /// The network of a name.
    ///
    /// # Errors
    /// The store fails, or the network cannot be understood.
    pub async fn network(&self, name: &str) -> Result<Option<Network>> {
        let key = format!("{NETWORKS}{name}");
        let found = self.store.get(&key).await.map_err(doing(format!("read network {name}")))?;
        Ok(found.as_ref().map(network_in).transpose()?.flatten())
    }

    /// Puts back a network that the store lost, with its number; whether it was lost. One that another has taken its place of, by name,
    /// pool or VNI, stays lost.
    ///
    /// # Errors
    /// The store fails, or what is there cannot be understood.
    pub async fn put_back_network(&self, network: &Network) -> Result<bool> {
        let what = format!("put network {} back", network.name);
        // The number first: nobody may be given it meanwhile.
        self.reserve_network_id(network.id, &what).await?;
        let others = self.networks().await?.good;
        let clashes = |other: &&Network| {
            other.name == network.name
                || other.id == network.id
                || have_pools_in_common(other, network)
                || have_one_vni(other, network)
        };
        if let Some(other) = others.iter().find(clashes) {
            if other != network {
                tracing::error!(
                    network = network.name,
                    other = other.name,
                    "cannot be put back beside another network"
                );
            }
            return Ok(false);
        }
        let key = format!("{NETWORKS}{}", network.name);
        let change = Change::put(encode(&key, network)?);
        let swap = self.store.compare_and_swap(&key, Expected::Absent, change).await.map_err(doing(what))?;
        Ok(matches!(swap, Swap::Done(_)))
    }

    /// Whether the store has never given this number to a network. One that a network has all the same was lost with it, for numbers
    /// are not given twice.
    ///
    /// # Errors
    /// The store fails, or the counter cannot be understood.
    pub async fn never_gave(&self, id: u32) -> Result<bool> {
        let entry = self.store.get(NETWORK_ID).await.map_err(doing("look which networks there were"))?;
        let next = entry.as_ref().map(decode::<Counter>).transpose()?.map_or(1, |counter| counter.next);
        Ok(id >= next)
    }

    async fn reserve_network_id(&self, id: u32, what: &str) -> Result<()> {
        for _ in 0..TRIES {
            let entry = self.store.get(NETWORK_ID).await.map_err(doing(what))?;
            let next = entry.as_ref().map(decode::<Counter>).transpose()?.map_or(1, |c| c.next);
            if next > id {
                return Ok(());
            }
            let expected = entry.map_or(Expected::Absent, |e| Expected::Revision(e.revision));
            let change = Change::put(encode(NETWORK_ID, Counter { next: id.saturating_add(1) })?);
            let swap = self.store.compare_and_swap(NETWORK_ID, expected, change).await;
            if let Swap::Done(_) = swap.map_err(doing(what))? {
                return Ok(());
            }
        }
        Err(ClusterError::Contended { doing: what.to_owned(), key: NETWORK_ID.to_owned() })
    }

    /// Stores a new network under the next free number; the number in it means nothing. Of two who create one name, one
    /// gets [`Creation::Exists`] with what the other stored; of two that clash one gets [`Creation::Clashes`].
    ///
    /// # Errors
    /// The store fails, or what is there cannot be understood.
    pub async fn create_network(&self, network: Network) -> Result<Creation> {
        let key = format!("{NETWORKS}{}", network.name);
        let what = format!("store network {}", network.name);
        for _ in 0..TRIES {
            if let Some(entry) = self.store.get(&key).await.map_err(doing(what.clone()))? {
                match read(&entry)? {
                    Stored::Network(there) => return Ok(Creation::Exists(there)),
                    Stored::Pending(_) | Stored::Removing(_) => {
                        self.outwait(&entry, &what).await?;
                        continue;
                    }
                }
            }
            let mut network = network.clone();
            network.id = self.next_network_id().await?;
            let unasked = network.overlay.is_some_and(|overlay| overlay.vni == 0);
            if let Some(overlay) = network.overlay.as_mut().filter(|_| unasked) {
                overlay.vni = Overlay::FIRST_VNI.saturating_add(network.id);
            }
            let pending = encode(&key, &Pending { pending: network.clone() })?;
            let swap = self.store.compare_and_swap(&key, Expected::Absent, Change::put(pending)).await;
            let Swap::Done(revision) = swap.map_err(doing(what.clone()))? else { continue };
            let mine = Expected::Revision(revision);
            let rival = match self.rival(&network, revision).await {
                Ok(Rival::Nobody) => {
                    let change = Change::put(encode(&key, &network)?);
                    let swap = self.store.compare_and_swap(&key, mine, change).await;
                    match swap.map_err(doing(what.clone()))? {
                        Swap::Done(_) => return Ok(Creation::Created(network)),
                        // Taken for one whose maker died.
                        Swap::Conflict(_) => continue,
                    }
                }
                rival => rival,
            };
            self.store.compare_and_swap(&key, mine, Change::Delete).await.map_err(doing(what.clone()))?;
            match rival? {
                // Another number makes another VNI.
                Rival::Network(other) if unasked && !have_pools_in_common(&network, &other) => {}
                Rival::Network(other) => return Ok(Creation::Clashes(other)),
                Rival::Pending(entry) => self.outwait(&entry, &what).await?,
                Rival::Nobody => {}
            }
        }
        Err(ClusterError::Contended { doing: what, key })
    }

    /// Who stands in the way of `network`, which was stored as pending at `revision`.
    async fn rival(&self, network: &Network, revision: Revision) -> Result<Rival> {
        let found = self.store.list(NETWORKS).await.map_err(doing("list the networks"))?;
        let mut pending = Rival::Nobody;
        for entry in found.entries {
            // What cannot be understood has no pools that could be compared; whoever lists the networks is told of it.
            let Ok(stored) = read(&entry) else { continue };
            match stored {
                Stored::Network(other) | Stored::Removing(other) => {
                    if have_pools_in_common(network, &other) || have_one_vni(network, &other) {
                        return Ok(Rival::Network(other));
                    }
                }
                Stored::Pending(other) => {
                    let clash = have_pools_in_common(network, &other) || have_one_vni(network, &other);
                    if clash && entry.revision < revision {
                        pending = Rival::Pending(entry);
                    }
                }
            }
        }
        Ok(pending)
    }

    /// Waits until a network that is being made or removed is so; after a while who does it counts as dead, and it is as before.
    async fn outwait(&self, entry: &Entry, what: &str) -> Result<()> {
        if matches!(read(entry)?, Stored::Network(_)) {
            return Ok(());
        }
        let looks = PATIENCE.as_millis() / LOOK.as_millis();
        for _ in 0..looks {
            let now = self.store.get(&entry.key).await.map_err(doing(what))?;
            if now.is_none_or(|now| now.revision != entry.revision) {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        let change = match read(entry)? {
            Stored::Pending(_) => Change::Delete,
            Stored::Removing(network) => Change::put(encode(&entry.key, &network)?),
            Stored::Network(_) => return Ok(()),
        };
        let expected = Expected::Revision(entry.revision);
        self.store.compare_and_swap(&entry.key, expected, change).await.map_err(doing(what))?;
        Ok(())
    }

    /// Whether a network still is what it was, and not about to go: asked after something of it was claimed.
    pub(super) async fn stands(&self, network: &Network) -> Result<bool> {
        let Some(entry) = self.entry_of(network).await? else { return Ok(false) };
        Ok(match read(&entry) {
            Ok(Stored::Network(there)) => there.id == network.id,
            Ok(Stored::Pending(_) | Stored::Removing(_)) => false,
            // Broken by hand: no reason to stop the nodes that know it.
            Err(_) => true,
        })
    }

    /// Waits until the removal of a network has come to something; one whose maker died comes to nothing.
    pub(super) async fn outwait_removal(&self, network: &Network) -> Result<()> {
        match self.entry_of(network).await? {
            Some(entry) => {
                self.outwait(&entry, &format!("wait for the removal of network {}", network.name)).await
            }
            None => Ok(()),
        }
    }

    async fn entry_of(&self, network: &Network) -> Result<Option<Entry>> {
        let key = format!("{NETWORKS}{}", network.name);
        self.store.get(&key).await.map_err(doing(format!("look at network {}", network.name)))
    }

    /// Changes a network in place, as long as `change` finds something to change; the network as it is then. Its name, number and
    /// subnets must stay.
    ///
    /// # Errors
    /// The store fails, the network is not there, or `change` refuses.
    pub async fn change_network<E: From<ClusterError>>(
        &self,
        name: &str,
        change: impl Fn(&mut Network) -> std::result::Result<(), E> + Send,
    ) -> std::result::Result<Option<Network>, E> {
        let key = format!("{NETWORKS}{name}");
        let what = format!("change network {name}");
        for _ in 0..TRIES {
            let Some(entry) = self.store.get(&key).await.map_err(doing(what.clone()))? else {
                return Ok(None);
            };
            let before = match read(&entry)? {
                Stored::Network(network) => network,
                Stored::Pending(_) | Stored::Removing(_) => {
                    self.outwait(&entry, &what).await?;
                    continue;
                }
            };
            let mut network = before.clone();
            change(&mut network)?;
            if network == before {
                return Ok(Some(network));
            }
            let put = Change::put(encode(&key, &network)?);
            let swap = self.store.compare_and_swap(&key, Expected::Revision(entry.revision), put).await;
            if let Swap::Done(_) = swap.map_err(doing(what.clone()))? {
                return Ok(Some(network));
            }
        }
        Err(ClusterError::Contended { doing: what, key }.into())
    }

    /// Takes the next number. One that is not used is lost, which does no harm.
    async fn next_network_id(&self) -> Result<u32> {
        let what = "take the next network number";
        for _ in 0..TRIES {
            let current = self.store.get(NETWORK_ID).await.map_err(doing(what))?;
            let (expected, id) = match &current {
                Some(entry) => (Expected::Revision(entry.revision), decode::<Counter>(entry)?.next),
                None => (Expected::Absent, 1),
            };
            let next = id.checked_add(1).ok_or_else(|| ClusterError::Broken {
                key: NETWORK_ID.to_owned(),
                cause: "no network number is left".to_owned(),
            })?;
            let change = Change::put(encode(NETWORK_ID, Counter { next })?);
            let swap = self.store.compare_and_swap(NETWORK_ID, expected, change).await;
            if let Swap::Done(_) = swap.map_err(doing(what))? {
                return Ok(id);
            }
        }
        Err(ClusterError::Contended { doing: what.to_owned(), key: NETWORK_ID.to_owned() })
    }
}
