//! Where an event came from: the trace context of the call that published it
//! (W3C Trace Context, level 1) and the call's id. Kept with the event in as few
//! bytes as it takes, and sent along with each attempt.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::id::{self, DeliveryId};

/// The header of a trace context.
pub const TRACEPARENT: &str = "traceparent";
/// The header of what the vendors on the way add to a trace context.
pub const TRACESTATE: &str = "tracestate";
/// The longest `tracestate` that is carried, in bytes.
pub const MAX_STATE: usize = 512;
/// The most members of a `tracestate`.
const MAX_MEMBERS: usize = 32;
/// What goes first where a `tracestate` is too long: members longer than this.
const LONG_MEMBER: usize = 128;

/// Which trace and which span in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// The trace's id; never all zero.
    pub trace: [u8; 16],
    /// The id of the span that is the parent of what follows; never all zero.
    pub span: [u8; 8],
    /// The flags; the lowest bit: whether the caller may have recorded its part.
    pub flags: u8,
}

impl Context {
    /// Reads a `traceparent`. None where it is none: then the trace begins anew,
    /// and nobody is refused for it. Of a version that is to come the part that
    /// this one knows is read.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim_matches([' ', '\t']);
        let (head, more) = text.split_at_checked(55)?;
        let fields: Vec<&str> = head.split('-').collect();
        let [version, trace, span, flags] = fields[..] else {
            return None;
        };
        let mut read = Self {
            trace: [0; 16],
            span: [0; 8],
            flags: lower_hex::<1>(flags)?[0],
        };
        read.trace = lower_hex(trace)?;
        read.span = lower_hex(span)?;
        let fits = match lower_hex::<1>(version)?[0] {
            0 => more.is_empty(),
            0xff => false,
            _ => more.is_empty() || more.starts_with('-'),
        };
        (fits && read.trace != [0; 16] && read.span != [0; 8]).then_some(read)
    }

    /// The span of one attempt in this trace: a child of the caller's. It follows
    /// from the delivery and its fence, which no two attempts share: so what was
    /// sent can be told later without having been stored.
    #[must_use]
    pub fn of_attempt(&self, delivery: DeliveryId, token: i32) -> Self {
        let digest = Sha256::new()
            .chain_update(b"attempt")
            .chain_update(delivery.0.as_bytes())
            .chain_update(token.to_be_bytes())
            .finalize();
        let mut span = [0; 8];
        span.copy_from_slice(&digest[..8]);
        // One in 2^64 is none.
        span[7] |= u8::from(span == [0; 8]);
        Self { span, ..*self }
    }
}

impl std::fmt::Display for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (trace, span) = (hex::encode(self.trace), hex::encode(self.span));
        write!(f, "00-{trace}-{span}-{:02x}", self.flags)
    }
}

fn lower_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    let lower = text.bytes().all(|b| !b.is_ascii_uppercase());
    (lower && hex::decode_to_slice(text, &mut out).is_ok()).then_some(out)
}

/// Reads what the headers `tracestate` have together. Empty where one of their
/// members is none; one that is too long is cut by whole members.
#[must_use]
pub fn state<'h>(headers: impl Iterator<Item = &'h str>) -> String {
    let mut members = Vec::new();
    let mut bytes = 0;
    for member in headers.flat_map(|h| h.split(',')) {
        let member = member.trim_matches([' ', '\t']);
        if member.is_empty() {
            continue;
        }
        if !is_member(member) || members.len() == MAX_MEMBERS {
            return String::new();
        }
        bytes += member.len() + 1;
        members.push(member);
    }
    if bytes > MAX_STATE + 1 {
        members.retain(|m| m.len() <= LONG_MEMBER);
    }
    let mut out = String::new();
    for member in members {
        if out.len() + member.len() + 1 > MAX_STATE {
            break;
        }
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(member);
    }
    out
}

/// `key=value`: a key of lower-case letters, digits and `_-*/@`, and printable
/// ASCII without a comma and another equals sign.
fn is_member(member: &str) -> bool {
    let Some((key, value)) = member.split_once('=') else {
        return false;
    };
    let in_key = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-*/@".contains(&b);
    let first = key.bytes().next();
    first.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && key.len() <= 256
        && key.bytes().all(in_key)
        && (1..=256).contains(&value.len())
        && value
            .bytes()
            .all(|b| (b' '..=b'~').contains(&b) && b != b'=')
}

/// Where an event came from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trace {
    /// The caller's trace context, if it sent one.
    pub context: Option<Context>,
    /// What vendors added to it; empty without a context.
    pub state: String,
    /// The id of the call: 1 to 128 visible ASCII characters, or empty.
    pub request_id: String,
}

/// In the first byte: a context follows.
const CONTEXT: u8 = 1;
/// A state follows, with its length in two bytes.
const STATE: u8 = 2;
/// The rest is the 16 bytes of an id that this server made, else text.
const MADE: u8 = 4;
/// How an id that this server made begins.
pub const MADE_PREFIX: &str = "req_";

impl Trace {
    /// As it is stored; nothing where there is nothing to tell.
    #[must_use]
    pub fn encode(&self) -> Option<Vec<u8>> {
        if *self == Self::default() {
            return None;
        }
        let mut out = vec![0];
        if let Some(context) = &self.context {
            out[0] |= CONTEXT;
            out.extend_from_slice(&context.trace);
            out.extend_from_slice(&context.span);
            out.push(context.flags);
        }
        if let Ok(length @ 1..) = u16::try_from(self.state.len()) {
            out[0] |= STATE;
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(self.state.as_bytes());
        }
        match made(&self.request_id) {
            Some(bytes) => {
                out[0] |= MADE;
                out.extend_from_slice(&bytes);
            }
            None => out.extend_from_slice(self.request_id.as_bytes()),
        }
        Some(out)
    }

    /// What was stored. None of anything else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, mut rest) = bytes.split_first()?;
        let mut read = Self::default();
        if kind & CONTEXT != 0 {
            let (trace, after) = rest.split_first_chunk()?;
            let (span, after) = after.split_first_chunk()?;
            let (flags, after) = after.split_first()?;
            rest = after;
            read.context = Some(Context {
                trace: *trace,
                span: *span,
                flags: *flags,
            });
        }
        if kind & STATE != 0 {
            let (length, after) = rest.split_first_chunk()?;
            let (state, after) = after.split_at_checked(u16::from_be_bytes(*length).into())?;
            rest = after;
            read.state.push_str(std::str::from_utf8(state).ok()?);
        }
        if kind & MADE == 0 {
            read.request_id.push_str(std::str::from_utf8(rest).ok()?);
        } else {
            let made = uuid::Uuid::from_slice(rest).ok()?;
            write!(read.request_id, "{MADE_PREFIX}{}", id::encode(made)).ok()?;
        }
        Some(read)
    }
}

/// The bytes of an id that this server made, where they give back its very text.
fn made(request_id: &str) -> Option<[u8; 16]> {
    let text = request_id.strip_prefix(MADE_PREFIX)?;
    let bytes = id::decode(text)?;
    (id::encode(bytes) == text).then(|| *bytes.as_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::id::{EventId, Part, uuid_at};

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    // D8
    #[test]
    fn a_context_is_read_or_ignored() {
        assert_eq!(Context::parse(GOOD).unwrap().to_string(), GOOD);
        assert_eq!(
            Context::parse(&format!(" {GOOD}\t")).unwrap().to_string(),
            GOOD
        );
        let next = GOOD.replacen("00", "cc", 1) + "-what-follows";
        assert_eq!(Context::parse(&next).unwrap().to_string(), GOOD);
        for bad in [
            String::new(),
            "00-1".to_owned(),
            GOOD.to_uppercase(),
            GOOD.replacen("00", "ff", 1),
            format!("{GOOD}-01"),
            format!("{}.", GOOD.replacen("00", "cc", 1)),
            GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            GOOD.replace("b7ad6b7169203331", &"0".repeat(16)),
            GOOD.replace('-', "_"),
            GOOD.replace("-01", "-0g"),
            GOOD.replace("b7ad", "ü7a"),
            GOOD[..54].to_owned(),
        ] {
            assert_eq!(Context::parse(&bad), None, "{bad}");
        }
    }

    // D8: the trace's id stays, and each attempt has a span of its own.
    #[test]
    fn attempts_are_spans_of_the_trace() {
        let context = Context::parse(GOOD).unwrap();
        let one = DeliveryId::of(EventId::new(1, Part::new(3)));
        let two = DeliveryId::of(EventId::new(2, Part::new(3)));
        let spans = [(one, 1), (one, 2), (two, 1)].map(|(d, t)| context.of_attempt(d, t));
        for (i, span) in spans.iter().enumerate() {
            assert_eq!((span.trace, span.flags), (context.trace, context.flags));
            assert!(!spans[..i].contains(span) && span.span != context.span);
        }
        assert_eq!(context.of_attempt(one, 1), spans[0]);
    }

    // D8
    #[test]
    fn a_state_is_bounded() {
        let read = |headers: &[&str]| state(headers.iter().copied());
        assert_eq!(read(&["a=1, b@x=2", " ,c/d=3 x"]), "a=1,b@x=2,c/d=3 x");
        assert_eq!(read(&[]), "");
        for bad in ["a", "=1", "A=1", "a=", "a=1=2", "a=\u{fc}", "-a=1", "a=1,b"] {
            assert_eq!(read(&[bad]), "", "{bad}");
        }
        let many = |n| {
            (0..n)
                .map(|i| format!("k{i}=1"))
                .collect::<Vec<_>>()
                .join(",")
        };
        assert_eq!(read(&[&many(32)]), many(32));
        assert_eq!(read(&[&many(33)]), "");
        // The long ones go first, then from the end.
        let long = format!(
            "a=1,long={},b=2,c={},d={}",
            "x".repeat(200),
            "y".repeat(120),
            "z".repeat(250)
        );
        assert_eq!(read(&[&long]), format!("a=1,b=2,c={}", "y".repeat(120)));
        let even: Vec<String> = (0..9).map(|i| format!("k{i}={}", "v".repeat(60))).collect();
        let cut = read(&[&even.join(",")]);
        assert!(cut.len() <= MAX_STATE && cut.ends_with('v') && cut.split(',').count() == 8);
    }

    // D8: an id of ours takes 16 bytes.
    #[test]
    fn what_is_stored_is_small() {
        let made = format!(
            "req_{}",
            id::encode(uuid_at(1_700_000_000_000_000, Part::new(0)))
        );
        let trace = |request_id: &str, context| Trace {
            context,
            state: String::new(),
            request_id: request_id.to_owned(),
        };
        for (request_id, context, bytes) in [
            (made.as_str(), None, 17),
            (made.as_str(), Context::parse(GOOD), 42),
            ("req_", None, 5),
            ("REQ_x", None, 6),
            (&made.to_uppercase(), None, 31),
        ] {
            let stored = trace(request_id, context).encode().unwrap();
            assert_eq!(stored.len(), bytes, "{request_id}");
            assert_eq!(Trace::decode(&stored), Some(trace(request_id, context)));
        }
        assert_eq!(Trace::default().encode(), None);
        assert_eq!(Trace::decode(&[]), None);
        assert_eq!(Trace::decode(&[CONTEXT, 1, 2]), None);
    }

    proptest! {
        #[test]
        fn stored_and_read(id in "[!-~]{0,128}", state in "([a-z]=[!-<]{1,9})?", parent in any::<Option<([u8; 16], [u8; 8], u8)>>()) {
            let context = parent.map(|(trace, span, flags)| Context { trace, span, flags });
            let trace = Trace { context, state, request_id: id };
            if let Some(bytes) = trace.encode() {
                prop_assert_eq!(Trace::decode(&bytes), Some(trace));
            } else {
                prop_assert_eq!(trace, Trace::default());
            }
        }

        #[test]
        fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..64), text in "\\PC{0,80}") {
            let _ = Trace::decode(&bytes);
            let _ = Context::parse(&text);
            let _ = state(std::iter::once(text.as_str()));
        }
    }
}
