//! One look at the store: registration, fencing, what was lost, disputes, lease, watches.

use super::{Membership, Trouble, Watches};
use crate::{
    clock::unix_seconds,
    cluster::{AliveRecord, ClusterError, node_key},
    member::{Comparison, Held, Stray},
    membership::{Dispute, LeaseStep, Refusal, Registration, Seen, WentBack, Why, decide},
    store::{Revision, StoreError, Update},
};
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// How often the record is tried again when it changes under the look.
const TRIES: usize = 20;

/// What registering came to.
enum Registered {
    Member { incarnation: u64, draining: bool, revision: Revision, went_back: bool },
    Refused { revision: Revision },
}

impl Membership {
    pub(super) async fn look(&mut self) -> Result<(), Trouble> {
        let sent = self.clock.now();
        let name = self.identity.borrow_and_update().name.clone();
        self.catch_up().await;
        self.loss |= self.member.take_loss();
        if self.loss {
            // Nothing is claimed from here on; then the store may be written again.
            self.note_went_back(0);
            self.cluster.accept_loss();
        }
        let (incarnation, draining, revision, went_back) = match self.register().await? {
            Registered::Member { incarnation, draining, revision, went_back } => {
                (incarnation, draining, revision, went_back)
            }
            Registered::Refused { revision } => {
                self.end_lease().await;
                let (_, disputes_from) = self.cluster.disputes().await?;
                self.watch(&name, revision, disputes_from).await?;
                self.member.update(|s| s.confirm(sent));
                return Ok(());
            }
        };
        self.give_back_former(&name, incarnation).await?;
        // It counts until a comparison was made after it.
        self.loss |= went_back;
        self.compare(self.loss).await?;
        self.loss = false;
        let disputes_from = self.follow_disputes(&name).await?;
        self.live(&name).await?;
        self.watch(&name, revision, disputes_from).await?;
        self.member.update(|s| {
            s.register(incarnation, draining);
            s.confirm(sent);
        });
        self.member.hold(self.lease.as_ref().map(|lease| Held { lease: lease.id(), incarnation }));
        Ok(())
    }

    /// What is done beside each keep-alive while it lasts: endpoints in lost blocks come to their end.
    pub(super) async fn tidy(&mut self) -> Result<(), Trouble> {
        if self.disputing {
            let name = self.identity.borrow().name.clone();
            self.follow_disputes(&name).await?;
        }
        Ok(())
    }

    async fn register(&mut self) -> Result<Registered, Trouble> {
        let identity = self.identity.borrow().clone();
        let mut went_back = false;
        for _ in 0..TRIES {
            let keys = self.cluster.node_keys(&identity.name).await?;
            let revision = keys.record.as_ref().map(|(_, revision)| *revision);
            let seen = Seen { record: keys.record.map(|(record, _)| record), last: keys.last };
            let known = self.holder.incarnation();
            let decided = decide(&identity, known, &seen, unix_seconds());
            let (Registration::Member { fence, .. }
            | Registration::Write { fence, .. }
            | Registration::Refused { fence, .. }) = &decided;
            if let Some(former) = *fence {
                self.fence(former).await?;
            }
            match decided {
                Registration::Refused { other, .. } => {
                    let refusal = Refusal { id: other.id, underlay: other.underlay };
                    if self.member.standing().refused.as_ref() != Some(&refusal) {
                        tracing::error!("{}", refusal.sentence(&identity.name));
                    }
                    self.member.update(|s| s.refuse(refusal));
                    return Ok(Registered::Refused { revision: revision.unwrap_or(0) });
                }
                Registration::Write { record, why, .. } => {
                    tracing::info!(node = record.name, incarnation = record.incarnation, ?why, "registering");
                    went_back |= why == Why::WentBack;
                    let (incarnation, draining) = (record.incarnation, record.draining);
                    if let Some(revision) = self.cluster.write_node(&record, revision).await? {
                        self.remember(incarnation, draining).await?;
                        return Ok(Registered::Member { incarnation, draining, revision, went_back });
                    }
                }
                Registration::Member { incarnation, .. } => {
                    let draining = seen.record.is_some_and(|r| r.draining);
                    self.remember(incarnation, draining).await?;
                    let revision = revision.unwrap_or(0);
                    return Ok(Registered::Member { incarnation, draining, revision, went_back });
                }
            }
        }
        let doing = format!("register node {}", identity.name);
        Err(ClusterError::Contended { doing, key: node_key(&identity.name) }.into())
    }

    async fn remember(&mut self, incarnation: u64, draining: bool) -> Result<(), Trouble> {
        if (self.holder.incarnation(), self.holder.is_draining()) != (Some(incarnation), draining) {
            let holder = Arc::clone(&self.holder);
            tokio::task::spawn_blocking(move || holder.remember(incarnation, draining)).await??;
        }
        Ok(())
    }

    /// First for those who ask, then on disk: from here on nothing is given from what was lost.
    async fn fence(&mut self, former: u64) -> Result<(), Trouble> {
        self.member.update(|s| s.fence(former));
        let holder = Arc::clone(&self.holder);
        tokio::task::spawn_blocking(move || holder.fence()).await??;
        self.former_given = false;
        // Whoever removed it deleted its sign of life.
        self.timer.lost();
        let strays = self.strays().await?;
        tracing::error!(
            former,
            endpoints = strays.len(),
            "this node was removed from the cluster: it gives nothing any more from the blocks that it had"
        );
        Ok(())
    }

    /// After a removal: deletes what is still recorded as this node's of a former incarnation, but for blocks with live endpoints,
    /// which the comparison takes up.
    async fn give_back_former(&mut self, name: &str, incarnation: u64) -> Result<(), Trouble> {
        if incarnation > 0 && !self.former_given {
            let strays = self.strays().await?;
            let lives = strays.iter().map(|s| (s.network, s.block)).collect();
            let given = self.cluster.give_back_former(name, incarnation, &lives).await?;
            if given > 0 {
                tracing::info!(given, "gave back what this node held before it was removed");
            }
        }
        self.former_given = true;
        Ok(())
    }

    /// Compares what the node holds with the store, and says when the store had lost some of it.
    async fn compare(&mut self, went_back: bool) -> Result<(), Trouble> {
        if went_back {
            // Before the comparison, so that nothing is claimed meanwhile.
            self.note_went_back(0);
        }
        let holder = Arc::clone(&self.holder);
        let compare = move || {
            let networks = if went_back { holder.put_back_networks()? } else { 0 };
            let compared = holder.compare()?;
            Ok(Comparison { put_back: compared.put_back + networks, ..compared })
        };
        let compared = tokio::task::spawn_blocking(compare).await?.map_err(Trouble::Compare)?;
        for (what, other) in &compared.lost {
            tracing::error!(%what, other, "what this node held is another node's; it gives nothing of it any more");
        }
        if went_back || compared.put_back > 0 || !compared.lost.is_empty() {
            self.note_went_back(compared.put_back);
            tracing::error!(
                put_back = compared.put_back,
                lost = compared.lost.len(),
                "the store went back to an older state; what it lost was put back, and no block is claimed for {} s",
                self.timer.ttl().as_secs()
            );
        }
        Ok(())
    }

    pub(super) fn note_went_back(&self, put_back: usize) {
        let at = self.clock.now();
        self.member.update(|s| s.went_back = Some(WentBack { at, put_back }));
    }

    /// Says in which blocks of others endpoints of this node live, and gives nothing from own blocks in which those of others do. Returns
    /// the revision from which disputes are to be watched.
    async fn follow_disputes(&mut self, name: &str) -> Result<Revision, Trouble> {
        let (all, revision) = self.cluster.disputes().await?;
        let strays = self.strays().await?;
        let lives: BTreeSet<(u32, IpNetwork)> = strays.iter().map(|s| (s.network, s.block)).collect();
        let said: BTreeSet<(u32, IpNetwork)> =
            all.iter().filter(|(_, nodes)| nodes.contains(name)).map(|(block, _)| *block).collect();
        for (network, block) in lives.symmetric_difference(&said) {
            let lives = lives.contains(&(*network, *block));
            self.cluster.dispute(name, *network, *block, lives).await?;
        }
        self.disputing = !lives.is_empty();
        let others = all.into_iter().filter_map(|((network, block), mut nodes)| {
            nodes.remove(name);
            let names = nodes.into_iter().collect::<Vec<_>>().join(", ");
            (!names.is_empty()).then_some((Dispute { network, block }, names))
        });
        let disputes: BTreeMap<Dispute, String> = others.collect();
        if self.member.standing().disputes != disputes {
            let blocks: BTreeSet<(u32, IpNetwork)> = disputes.keys().map(|d| (d.network, d.block)).collect();
            let holder = Arc::clone(&self.holder);
            tokio::task::spawn_blocking(move || holder.suspend(&blocks)).await?;
            self.member.update(|s| s.disputes = disputes);
        }
        Ok(revision)
    }

    pub(super) async fn strays(&mut self) -> Result<Vec<Stray>, Trouble> {
        let holder = Arc::clone(&self.holder);
        Ok(tokio::task::spawn_blocking(move || holder.strays()).await?)
    }

    /// Shows that the node lives.
    async fn live(&mut self, name: &str) -> Result<(), Trouble> {
        let sent = self.clock.now();
        let take = match (self.timer.step(sent), &self.lease) {
            (LeaseStep::Take, _) | (_, None) => true,
            (LeaseStep::Wait(_), Some(_)) => false,
            (LeaseStep::KeepAlive, Some(lease)) => match lease.keep_alive().await {
                Ok(()) => {
                    self.timer.held(sent);
                    false
                }
                Err(StoreError::LeaseGone(_)) => true,
                Err(error) => return Err(error.into()),
            },
        };
        if !take {
            return Ok(());
        }
        self.timer.lost();
        let (id, boot_id) = {
            let identity = self.identity.borrow();
            (identity.id.clone(), identity.boot_id.clone())
        };
        let lease = self.cluster.take_lease(self.timer.ttl()).await?;
        self.cluster.put_alive(name, &AliveRecord { id, boot_id }, lease.id()).await?;
        self.timer.held(sent);
        self.lease = Some(lease);
        Ok(())
    }

    async fn end_lease(&mut self) {
        self.member.hold(None);
        self.timer.lost();
        if let Some(lease) = self.lease.take()
            && let Err(error) = lease.revoke().await
        {
            tracing::debug!(%error, "the lease ends by itself");
        }
    }

    async fn watch(
        &mut self,
        name: &str,
        own_from: Revision,
        disputes_from: Revision,
    ) -> Result<(), Trouble> {
        let own = self.cluster.watch_node(name, own_from).await?;
        if let Some(watches) = &mut self.watches {
            watches.own = own;
            self.is_settled = true;
            return Ok(());
        }
        let disputes = self.cluster.watch_disputes(disputes_from).await?;
        let now_alive = self.cluster.alive().await?;
        let alive = self.cluster.watch_alive(now_alive.revision).await?;
        self.note_presence(&Update::Snapshot(now_alive));
        self.watches = Some(Watches { own, disputes, alive });
        self.is_settled = true;
        Ok(())
    }
}
