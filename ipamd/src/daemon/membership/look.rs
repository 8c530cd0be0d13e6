//! One look at the store: registration, fencing, what was lost, disputes, lease, watches.

use super::{Membership, Trouble, Watches};
use crate::{
    clock::unix_seconds,
    cluster::{AliveRecord, ClusterError, Remembered, node_key},
    member::Stray,
    membership::{Dispute, LeaseStep, Refusal, Registration, Seen, WentBack, Why, decide, reassert},
    store::{Revision, StoreError, Update},
};
use ipnetwork::IpNetwork;
use std::{collections::BTreeSet, sync::Arc};

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
        self.compare(&name, incarnation, went_back).await?;
        self.give_back_former(&name, incarnation).await?;
        let disputes_from = self.follow_disputes(&name).await?;
        self.live(&name).await?;
        self.watch(&name, revision, disputes_from).await?;
        self.member.update(|s| {
            s.register(incarnation, draining);
            s.confirm(sent);
        });
        Ok(())
    }

    /// What is done beside each keep-alive, when something lasts.
    pub(super) async fn tidy(&mut self) -> Result<(), Trouble> {
        let standing = self.member.standing();
        if let Some(incarnation) = standing.incarnation.filter(|_| self.former.is_some()) {
            self.give_back_former(&standing.name, incarnation).await?;
        }
        if !standing.disputes.is_empty() {
            self.follow_disputes(&standing.name).await?;
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
                        self.remember(incarnation).await?;
                        return Ok(Registered::Member { incarnation, draining, revision, went_back });
                    }
                }
                Registration::Member { incarnation, .. } => {
                    self.remember(incarnation).await?;
                    let draining = seen.record.is_some_and(|r| r.draining);
                    let revision = revision.unwrap_or(0);
                    return Ok(Registered::Member { incarnation, draining, revision, went_back });
                }
            }
        }
        let doing = format!("register node {}", identity.name);
        Err(ClusterError::Contended { doing, key: node_key(&identity.name) }.into())
    }

    async fn remember(&mut self, incarnation: u64) -> Result<(), Trouble> {
        if self.holder.incarnation() != Some(incarnation) {
            let holder = Arc::clone(&self.holder);
            tokio::task::spawn_blocking(move || holder.remember(incarnation)).await??;
        }
        Ok(())
    }

    /// First for those who ask, then on disk: from here on nothing is given from what was lost.
    async fn fence(&mut self, former: u64) -> Result<(), Trouble> {
        self.member.update(|s| s.fence(former));
        let holder = Arc::clone(&self.holder);
        tokio::task::spawn_blocking(move || holder.fence()).await??;
        self.former = Some(BTreeSet::new());
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

    /// Compares what the node holds with the store, and puts back what that lost.
    async fn compare(&mut self, name: &str, incarnation: u64, went_back: bool) -> Result<(), Trouble> {
        let remembered = self.remembered().await?;
        let mut compared = Vec::with_capacity(remembered.len());
        for what in remembered {
            let (ownership, revision) = self.cluster.ownership(name, &what).await?;
            compared.push(((what, revision), ownership));
        }
        let todo = reassert(incarnation, &compared);
        let known = self.member.standing().disputes;
        let news = todo.disputed.iter().any(|((what, _), _)| !known.contains_key(&disputed(what)));
        let lost = went_back || news || !todo.put.is_empty() || !todo.renew.is_empty();
        if lost {
            // Before the first write, so that nothing is claimed meanwhile.
            self.note_went_back(0);
        }
        let mut put_back = 0;
        for (what, before) in todo.put.iter().chain(&todo.renew) {
            // What was given back since it was listed stays so.
            if self.remembered().await?.contains(what)
                && self.cluster.put_back(name, incarnation, what, *before).await?
            {
                put_back += 1;
            }
        }
        self.addresses.clear();
        for ((what, _), other) in &todo.disputed {
            if !known.contains_key(&disputed(what)) {
                tracing::error!(what = %disputed(what).block, other, "what this node holds is another node's, too; neither gives from it");
            }
            match what {
                Remembered::Block { network, block, .. } => {
                    self.cluster.dispute(*network, *block, &[name, other]).await?;
                }
                Remembered::Address { .. } => {
                    self.addresses.insert(disputed(what), other.clone());
                }
            }
        }
        if lost {
            self.note_went_back(put_back);
            let pause = self.timer.ttl().as_secs();
            tracing::error!(
                put_back,
                "the store went back to an older state; what it lost was put back, and no block is claimed for {pause} s"
            );
        }
        Ok(())
    }

    fn note_went_back(&self, put_back: usize) {
        let at = self.clock.now();
        self.member.update(|s| s.went_back = Some(WentBack { at, put_back }));
    }

    async fn remembered(&mut self) -> Result<Vec<Remembered>, Trouble> {
        let holder = Arc::clone(&self.holder);
        Ok(tokio::task::spawn_blocking(move || holder.remembered()).await?)
    }

    /// Follows the disputes that name this node: gives nothing from these blocks, and gives up those in which nothing lives.
    /// Returns the revision from which they are to be watched.
    async fn follow_disputes(&mut self, name: &str) -> Result<Revision, Trouble> {
        let (all, revision) = self.cluster.disputes().await?;
        let own: Vec<_> = all.into_iter().filter(|(_, nodes)| nodes.contains(name)).collect();
        let suspended: BTreeSet<(u32, IpNetwork)> = own.iter().map(|(block, _)| *block).collect();
        let others = |nodes: &BTreeSet<String>| {
            nodes.iter().filter(|n| *n != name).cloned().collect::<Vec<_>>().join(", ")
        };
        let blocks = own
            .iter()
            .map(|((network, block), nodes)| (Dispute { network: *network, block: *block }, others(nodes)));
        let disputes = self.addresses.clone().into_iter().chain(blocks).collect();
        self.holder.suspend(&suspended);
        self.member.update(|s| s.disputes = disputes);
        for ((network, block), nodes) in own {
            let holder = Arc::clone(&self.holder);
            let without = tokio::task::spawn_blocking(move || holder.forget(network, block)).await??;
            if without {
                self.cluster.give_back(name, network, block).await?;
            }
            // The last one that is left has it for itself.
            if without || nodes.len() == 1 {
                self.cluster.leave_dispute(name, network, block).await?;
            }
        }
        Ok(revision)
    }

    /// After a removal: deletes what is still recorded as this node's of a former incarnation, but for blocks with live endpoints.
    async fn give_back_former(&mut self, name: &str, incarnation: u64) -> Result<(), Trouble> {
        let Some(kept) = self.former.clone() else { return Ok(()) };
        let strays = self.strays().await?;
        let lives: BTreeSet<(u32, IpNetwork)> = strays.iter().map(|s| (s.network, s.block)).collect();
        if !lives.is_empty() && kept == lives {
            return Ok(());
        }
        if incarnation > 0 {
            let given = self.cluster.give_back_former(name, incarnation, &lives).await?;
            if given > 0 {
                tracing::info!(given, "gave back what this node held before it was removed");
            }
        }
        self.former = (!lives.is_empty()).then_some(lives);
        Ok(())
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
            return Ok(());
        }
        let disputes = self.cluster.watch_disputes(disputes_from).await?;
        let now_alive = self.cluster.alive().await?;
        let alive = self.cluster.watch_alive(now_alive.revision).await?;
        self.note_presence(&Update::Snapshot(now_alive));
        self.watches = Some(Watches { own, disputes, alive });
        Ok(())
    }
}

/// The name under which a disputed thing is known: its block, or its address as one.
fn disputed(what: &Remembered) -> Dispute {
    match what {
        Remembered::Block { network, block, .. } => Dispute { network: *network, block: *block },
        Remembered::Address { network, address, .. } => {
            Dispute { network: *network, block: IpNetwork::from(*address) }
        }
    }
}
