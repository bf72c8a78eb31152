//! The audit log's chain. Each record's hash covers the record and the hash
//! before it, under a key that the database holds sealed only: whoever can write
//! the database alone can't write a record that verifies.

use std::collections::HashMap;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use super::{
    id::Micros,
    switch::{Change, Stored},
};

/// HMAC-SHA-256.
pub type Hash = [u8; 32];

/// What the first record's hash covers in place of one before it.
pub const BEGINNING: Hash = [0; 32];

/// What a record tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When, by the store's clock.
    pub at: Micros,
    /// Who: a key's id.
    pub actor: String,
    /// What was done, such as `switch.set`.
    pub action: String,
    /// To what.
    pub target: String,
    /// The value before.
    pub old: String,
    /// The value after.
    pub new: String,
    /// Why.
    pub reason: String,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number: 1 for the first, one more for each.
    pub seq: i64,
    /// What it tells.
    pub entry: Entry,
    /// Its hash.
    pub hash: Hash,
}

/// The last record, told apart from the records: without it the log's end could
/// be cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The last record's number.
    pub seq: i64,
    /// Of that number and the last record's hash.
    pub mac: Hash,
}

/// Makes hashes.
#[derive(Clone)]
pub struct Chain(Hmac<Sha256>);

impl Chain {
    /// Under that key.
    ///
    /// # Errors
    /// Never for 32 bytes; HMAC takes any length.
    pub fn new(key: &Hash) -> Result<Self, hmac::digest::InvalidLength> {
        Hmac::new_from_slice(key).map(Self)
    }

    /// A record's hash. Texts are led by their length, so that nothing can move
    /// from one field to the next.
    #[must_use]
    pub fn link(&self, before: &Hash, seq: i64, entry: &Entry) -> Hash {
        let mut mac = self.0.clone();
        mac.update(b"record");
        mac.update(before);
        mac.update(&seq.to_be_bytes());
        mac.update(&entry.at.to_be_bytes());
        for text in [
            &entry.actor,
            &entry.action,
            &entry.target,
            &entry.old,
            &entry.new,
            &entry.reason,
        ] {
            mac.update(&(text.len() as u64).to_be_bytes());
            mac.update(text.as_bytes());
        }
        mac.finalize().into_bytes().into()
    }

    /// What tells that the record of that number and hash is the last one.
    #[must_use]
    pub fn head(&self, seq: i64, hash: &Hash) -> Head {
        let mut mac = self.0.clone();
        mac.update(b"head");
        mac.update(&seq.to_be_bytes());
        mac.update(hash);
        Head {
            seq,
            mac: mac.finalize().into_bytes().into(),
        }
    }

    /// The record that follows the one of that number and hash.
    #[must_use]
    pub fn append(&self, seq: i64, before: &Hash, entry: Entry) -> Record {
        let seq = seq + 1;
        Record {
            seq,
            hash: self.link(before, seq, &entry),
            entry,
        }
    }
}

/// The first thing that is wrong with a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record {seq}: {what}")]
pub struct Fault {
    /// The record's number.
    pub seq: i64,
    /// What is wrong.
    pub what: String,
}

/// Reads a log from its first record to its last, and tells the first thing that
/// is wrong.
pub struct Verifier {
    chain: Chain,
    last: i64,
    hash: Hash,
    fault: Option<Fault>,
    /// What the switches are by what the log tells, and by which record.
    switches: HashMap<String, (Stored, i64)>,
}

impl Verifier {
    /// One that has read nothing.
    #[must_use]
    pub fn new(chain: Chain) -> Self {
        Self {
            chain,
            last: 0,
            hash: BEGINNING,
            fault: None,
            switches: HashMap::new(),
        }
    }

    fn wrong(&mut self, seq: i64, what: impl Into<String>) {
        let what = what.into();
        self.fault.get_or_insert(Fault { seq, what });
    }

    /// Reads the next record.
    pub fn read(&mut self, record: Record) {
        if self.fault.is_some() {
            return;
        }
        let next = self.last + 1;
        if record.seq != next {
            return self.wrong(next, "is missing");
        }
        let Record { seq, entry, hash } = record;
        if self.chain.link(&self.hash, seq, &entry) != hash {
            return self.wrong(
                seq,
                "was changed, or put in another's place: its hash is not that of what it tells and of the record before it",
            );
        }
        (self.last, self.hash) = (seq, hash);
        if let Some(change) = Change::read(&entry.action, &entry.new) {
            let known = self.switches.remove(&entry.target);
            let mut switch = known.map_or_else(|| Stored::untouched(&entry.target), |(s, _)| s);
            let _ = change.make(&mut switch);
            switch.updated_at = entry.at;
            switch.updated_by = entry.actor;
            switch.reason = entry.reason;
            self.switches.insert(entry.target, (switch, seq));
        }
    }

    /// Compares with the head, and with the switches as they are stored: the
    /// number of records and the last one's hash.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn end(mut self, head: Option<Head>, stored: &[Stored]) -> Result<(i64, Hash), Fault> {
        if self.fault.is_none() {
            self.check_end(head, stored);
        }
        match self.fault {
            Some(fault) => Err(fault),
            None => Ok((self.last, self.hash)),
        }
    }

    fn check_end(&mut self, head: Option<Head>, stored: &[Stored]) {
        let last = self.last;
        match head {
            None if last == 0 => {}
            None => return self.wrong(last, "nothing tells that it is the last one"),
            Some(head) if head.seq > last => {
                let why = format!("is missing: the log ends with record {last}");
                return self.wrong(last + 1, why);
            }
            Some(head) if head != self.chain.head(last, &self.hash) => {
                return self.wrong(last, "what tells that it is the last one was forged");
            }
            Some(_) => {}
        }
        for now in stored {
            let told = self.switches.remove(&now.name);
            let Some((mut told, seq)) = told else {
                let what = format!(
                    "no record tells of the switch {}, which is stored",
                    now.name
                );
                return self.wrong(last + 1, what);
            };
            told.rev = now.rev;
            if told != *now {
                let what = format!(
                    "is the last that tells of {}, and what is stored is another thing",
                    now.name
                );
                return self.wrong(seq, what);
            }
        }
        let gone = self.switches.drain().map(|(name, (_, seq))| (seq, name));
        if let Some((seq, name)) = gone.min() {
            self.wrong(seq, format!("tells of {name}, which is not stored"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain() -> Chain {
        Chain::new(&[7; 32]).unwrap()
    }

    fn entry(n: i64) -> Entry {
        Entry {
            at: n,
            actor: "key_1".into(),
            action: "key.revoke".into(),
            target: format!("key_{n}"),
            old: "ACTIVE".into(),
            new: "REVOKED".into(),
            reason: "lost".into(),
        }
    }

    fn log(chain: &Chain, length: i64) -> Vec<Record> {
        let (mut hash, mut log) = (BEGINNING, Vec::new());
        for n in 0..length {
            let record = chain.append(n, &hash, entry(n));
            hash = record.hash;
            log.push(record);
        }
        log
    }

    fn verify(log: &[Record], head: Option<Head>) -> Result<i64, (i64, String)> {
        let mut verifier = Verifier::new(chain());
        for record in log.iter().cloned() {
            verifier.read(record);
        }
        verifier
            .end(head, &[])
            .map(|(n, _)| n)
            .map_err(|f| (f.seq, f.what))
    }

    fn head(log: &[Record]) -> Option<Head> {
        log.last().map(|r| chain().head(r.seq, &r.hash))
    }

    // X3: a log that nobody touched verifies; each field that is changed does not.
    #[test]
    fn every_field_counts() {
        let log = log(&chain(), 5);
        assert_eq!(verify(&log, head(&log)), Ok(5));
        assert_eq!(verify(&[], None), Ok(0));
        let changes: [fn(&mut Record); 9] = [
            |r| r.entry.at += 1,
            |r| r.entry.actor.push('2'),
            |r| r.entry.action.push('d'),
            |r| r.entry.target.push('2'),
            |r| r.entry.old.clear(),
            |r| r.entry.new = "ACTIVE".into(),
            |r| r.entry.reason.clear(),
            |r| r.hash[31] ^= 1,
            // Text that moves from one field to the next.
            |r| (r.entry.old, r.entry.new) = ("ACTIVER".into(), "EVOKED".into()),
        ];
        for (n, change) in changes.iter().enumerate() {
            let mut log = log.clone();
            change(&mut log[2]);
            assert_eq!(verify(&log, head(&log)).unwrap_err().0, 3, "change {n}");
        }
    }

    // X3: records that are gone, exchanged or of another key, and a cut end.
    #[test]
    fn order_and_length_count() {
        let log = log(&chain(), 5);
        for gone in 0..4 {
            let mut less = log.clone();
            less.remove(gone);
            let (seq, what) = verify(&less, head(&log)).unwrap_err();
            assert_eq!((seq, what.as_str()), (gone as i64 + 1, "is missing"));
        }
        let (seq, what) = verify(&log[..4], head(&log)).unwrap_err();
        assert_eq!(seq, 5);
        assert!(what.contains("ends with record 4"), "{what}");
        assert_eq!(verify(&log, None).unwrap_err().0, 5);
        // Of two logs that went different ways, each with records that were good.
        let mut spliced = log.clone();
        spliced[3] = chain().append(3, &log[2].hash, entry(9));
        assert_eq!(verify(&spliced, head(&log)).unwrap_err().0, 5);
        let mut exchanged = log.clone();
        exchanged.swap(1, 2);
        (exchanged[1].seq, exchanged[2].seq) = (2, 3);
        assert_eq!(verify(&exchanged, head(&log)).unwrap_err().0, 2);
        let other = Chain::new(&[8; 32]).unwrap();
        let forged = other.head(4, &log[3].hash);
        assert_eq!(verify(&log[..4], Some(forged)).unwrap_err().0, 4);
        let mut appended = log.clone();
        appended.push(other.append(5, &log[4].hash, entry(6)));
        let forged = other.head(6, &appended[5].hash);
        assert_eq!(verify(&appended, Some(forged)).unwrap_err().0, 6);
    }

    // X3: switches that were set behind the log's back.
    #[test]
    fn switches_are_as_the_log_tells() {
        let chain = chain();
        let mut told = Stored::untouched("webhooks.enabled");
        let (mut hash, mut log) = (BEGINNING, Vec::new());
        for (n, change) in (0..).zip([Change::Set(true), Change::Stop]) {
            let (old, new) = change.make(&mut told).unwrap();
            let entry = Entry {
                action: change.action().into(),
                target: told.name.clone(),
                old: old.into(),
                new: new.into(),
                ..entry(n)
            };
            (told.updated_at, told.updated_by) = (entry.at, entry.actor.clone());
            told.reason = entry.reason.clone();
            let record = chain.append(n, &hash, entry);
            hash = record.hash;
            log.push(record);
        }
        let check = |stored: &[Stored]| {
            let mut verifier = Verifier::new(chain.clone());
            for record in log.iter().cloned() {
                verifier.read(record);
            }
            verifier.end(head(&log), stored).map_err(|f| f.seq)
        };
        assert!(check(std::slice::from_ref(&told)).is_ok());
        assert_eq!(check(&[]), Err(2));
        let mut lifted = told.clone();
        lifted.stopped = false;
        assert_eq!(check(&[lifted]), Err(2));
        let other = Stored::untouched("external_api.enabled");
        assert_eq!(check(&[told, other]), Err(3));
    }
}
