//! Lease tokens: what of a lease its worker carries, sealed for that worker. So
//! an ack can be recorded by whichever node it comes to, and nobody acks what was
//! not handed to them. Whether the lease still holds the store alone knows.

use std::time::Instant;

use bytes::{Buf as _, BufMut as _, Bytes};
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use uuid::Uuid;

use crate::{
    domain::id::{
        DeliveryId, EventId, KeyId, Micros, SubscriptionId, TenantId, micros, wall_clock,
    },
    pipeline::Job,
    seal::Keyring,
    store::Session,
};

/// The form of a token.
const FORM: u8 = 1;
/// The bytes of a token before its seal.
const LENGTH: usize = 1 + 4 + 2 + 2 + 1 + 16 * 3 + 8 + 8;
/// The bytes of a seal.
const SEAL: usize = 16;

/// Whose leases they are: a worker's name means something beside its key alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Holder {
    /// The key that it came with.
    pub(super) key: KeyId,
    /// What it calls itself.
    pub(super) worker: String,
}

fn seal_of(keyring: &Keyring, holder: &Holder, id: DeliveryId, text: &[u8]) -> Hmac<Sha256> {
    keyring
        .lease_mac()
        .chain_update(text)
        .chain_update(id.0.as_bytes())
        .chain_update(holder.key.0.as_bytes())
        .chain_update(holder.worker.as_bytes())
}

/// The token of a job that is handed to this worker.
pub(super) fn seal(keyring: &Keyring, holder: &Holder, job: &Job) -> Bytes {
    let mut text = Vec::with_capacity(LENGTH + SEAL);
    text.put_u8(FORM);
    text.put_i32(job.token);
    text.put_u16(job.attempts);
    text.put_u16(job.replays);
    text.put_u8(job.by_hand.into());
    text.put_slice(job.tenant.0.as_bytes());
    text.put_slice(job.subscription.0.as_bytes());
    text.put_slice(job.event.0.as_bytes());
    text.put_i64(job.age + micros(job.since.elapsed()));
    text.put_i64(wall_clock());
    let seal = seal_of(keyring, holder, job.id, &text).finalize();
    text.extend_from_slice(&seal.into_bytes()[..SEAL]);
    text.into()
}

/// What a token says of a delivery that was handed to this worker: a job without
/// its body. None where it was not, or for another delivery.
pub(super) fn open(
    keyring: &Keyring,
    holder: &Holder,
    id: DeliveryId,
    token: &[u8],
) -> Option<Job> {
    let (mut text, seal) = token.split_at_checked(LENGTH)?;
    if seal.len() != SEAL || text[0] != FORM {
        return None;
    }
    seal_of(keyring, holder, id, text)
        .verify_truncated_left(seal)
        .ok()?;
    text.advance(1);
    let uuid = |text: &mut &[u8]| {
        let mut bytes = [0; 16];
        text.copy_to_slice(&mut bytes);
        Uuid::from_bytes(bytes)
    };
    let lease = text.get_i32();
    let (attempts, replays, by_hand) = (text.get_u16(), text.get_u16(), text.get_u8() != 0);
    let tenant = TenantId(uuid(&mut text));
    let subscription = SubscriptionId(uuid(&mut text));
    let event = EventId(uuid(&mut text));
    let (age, sealed_at): (Micros, Micros) = (text.get_i64(), text.get_i64());
    Some(Job {
        id,
        tenant,
        subscription,
        event,
        event_type: "".into(),
        body: Bytes::new(),
        trace: None,
        ordering_key: None,
        token: lease,
        attempts,
        replays,
        by_hand,
        age: age + (wall_clock() - sealed_at).max(0),
        since: Instant::now(),
        session: Session(0),
    })
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::{domain::id::Part, settings::MasterKey, store::sqlite::Sqlite};

    // W2: a token is good for one delivery of one worker, and what is changed of
    // it is good for nothing.
    #[tokio::test]
    async fn a_token_is_good_for_its_worker_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = Sqlite::open(&folder.path().join("o.db")).await.unwrap();
        let master = MasterKey(Zeroizing::new([7; 32]));
        let keyring = Keyring::open(&store, &master).await.unwrap();
        let part = Part::new(3);
        let event = EventId::new(1, part);
        let job = Job {
            id: DeliveryId::of(event),
            tenant: TenantId::new(2, part),
            subscription: SubscriptionId::new(3, part),
            event,
            event_type: "a".into(),
            body: Bytes::from_static(b"{}"),
            trace: None,
            ordering_key: None,
            token: 77,
            attempts: 2,
            replays: 1,
            by_hand: true,
            age: 1_000_000,
            since: Instant::now(),
            session: Session(1),
        };
        let holder = |key: i64, worker: &str| Holder {
            key: KeyId::new(key, part),
            worker: worker.to_owned(),
        };
        let ours = holder(1, "w");
        let token = seal(&keyring, &ours, &job);
        let read = open(&keyring, &ours, job.id, &token).unwrap();
        assert_eq!(
            (read.token, read.attempts, read.replays, read.by_hand),
            (77, 2, 1, true)
        );
        assert_eq!(
            (read.tenant, read.subscription, read.event),
            (job.tenant, job.subscription, job.event)
        );
        assert!(read.age >= job.age && read.age < job.age + 60_000_000);
        let opens = |holder: &Holder, id, token: &[u8]| open(&keyring, holder, id, token).is_some();
        assert!(!opens(&holder(2, "w"), job.id, &token));
        assert!(!opens(&holder(1, "v"), job.id, &token));
        assert!(!opens(&ours, DeliveryId::of(event), &token));
        for at in 0..token.len() {
            let mut changed = token.to_vec();
            changed[at] ^= 1;
            assert!(!opens(&ours, job.id, &changed), "{at}");
            assert!(!opens(&ours, job.id, &token[..at]), "{at}");
        }
        let longer = [&token[..], &[0]].concat();
        assert!(!opens(&ours, job.id, &longer));
    }
}
