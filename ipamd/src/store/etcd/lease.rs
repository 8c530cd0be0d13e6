//! Leases of etcd. The number is chosen here, so that a grant whose answer was lost can be asked for again.

use super::{Shared, endpoints::Failure, trouble::Trouble};
use crate::random::random;
use crate::store::{Lease, LeaseId, StoreError};
use async_trait::async_trait;
use etcd_client::LeaseGrantOptions;
use std::{sync::Arc, time::Duration};

/// A lease that this process took.
pub(super) struct EtcdLease {
    shared: Arc<Shared>,
    id: LeaseId,
}

/// Takes a lease. etcd counts whole seconds, and takes none that is shorter than one and a half election timeouts.
pub(super) async fn take(shared: &Arc<Shared>, ttl: Duration) -> Result<EtcdLease, StoreError> {
    // Zero would let etcd choose, and negative ones are not taken.
    let id = i64::try_from(random() >> 1).unwrap_or(i64::MAX).max(1);
    let seconds = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX).max(1);
    let granted = shared.endpoints.call(|client| async move {
        let options = LeaseGrantOptions::new().with_id(id);
        match client.lease_client().grant(seconds, Some(options)).await.map_err(Trouble::from) {
            Ok(granted) if granted.0.error.is_empty() => Ok(()),
            Ok(granted) => Err(Trouble::Refused(granted.0.error)),
            // An earlier try of this call took it: nobody else chooses this number.
            Err(Trouble::Refused(said)) if said.contains("lease already exists") => Ok(()),
            Err(trouble) => Err(trouble),
        }
    });
    granted.await.map_err(|failure| shared.failed("take a lease", failure))?;
    Ok(EtcdLease { shared: Arc::clone(shared), id: LeaseId(id.cast_unsigned()) })
}

impl EtcdLease {
    fn number(&self) -> i64 {
        self.id.0.cast_signed()
    }
}

#[async_trait]
impl Lease for EtcdLease {
    fn id(&self) -> LeaseId {
        self.id
    }

    async fn keep_alive(&self) -> Result<(), StoreError> {
        let id = self.number();
        let kept = self.shared.endpoints.call(|client| async move {
            // The first answer has come when this returns; the stream ends with what is dropped here.
            client.lease_client().keep_alive(id).await.map(|_| ()).map_err(Trouble::from)
        });
        kept.await.map_err(|failure| match failure {
            Failure::Refused { trouble: Trouble::LeaseGone, .. } => StoreError::LeaseGone(self.id),
            other => self.shared.failed("keep a lease", other),
        })
    }

    async fn revoke(&self) -> Result<(), StoreError> {
        let id = self.number();
        let revoked = self.shared.endpoints.call(|client| async move {
            match client.lease_client().revoke(id).await.map_err(Trouble::from) {
                Ok(_) | Err(Trouble::LeaseGone) => Ok(()),
                Err(trouble) => Err(trouble),
            }
        });
        revoked.await.map_err(|failure| self.shared.failed("end a lease", failure))
    }
}
