//! Reading the headers that carry signatures. Total functions: any text gives
//! an answer.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{VerifyError, WEBHOOK_SIGNATURE, X_WEBHOOK_SIGNATURE};

/// Longest header that is looked at, in bytes; ours stay below 400.
const MAX_LENGTH: usize = 4096;
/// Most signatures that are tried, so that a header can't cost much.
const MAX_SIGNATURES: usize = 16;

/// An `x-webhook-signature`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum XSignature<'h> {
    /// `t=…,e=…,v1=…`; also what `v1n` holds.
    V1 {
        t: &'h str,
        event_id: &'h str,
        digests: Vec<[u8; 32]>,
    },
    /// A hex digest alone.
    Plain([u8; 32]),
}

/// The entries of a `webhook-signature` that are of a known version.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct StandardSignatures {
    pub(super) v1: Vec<[u8; 32]>,
    pub(super) v1a: Vec<[u8; 64]>,
}

pub(super) fn x_signature(value: &str) -> Result<XSignature<'_>, VerifyError> {
    let malformed = |problem| malformed(X_WEBHOOK_SIGNATURE, problem);
    let value = value.trim_matches(' ');
    if value.len() > MAX_LENGTH {
        return Err(malformed("it is too long"));
    }
    if !value.contains('=') {
        return match digest(value) {
            Some(digest) => Ok(XSignature::Plain(digest)),
            None => Err(malformed(
                "it is neither `t=…,e=…,v1=…` nor a digest of 64 hex digits",
            )),
        };
    }
    let (mut t, mut event_id, mut digests, mut versions) = (None, None, Vec::new(), 0_usize);
    for item in value.split(',') {
        let Some((name, text)) = item.trim_matches(' ').split_once('=') else {
            return Err(malformed("an item between the commas has no `=`"));
        };
        match name {
            "t" if t.replace(text).is_some() => return Err(malformed("`t` is there twice")),
            "e" if event_id.replace(text).is_some() => return Err(malformed("`e` is there twice")),
            "t" | "e" => {}
            "v1" | "v1n" => {
                digests.push(digest(text).ok_or_else(|| malformed("a `v1` is not 64 hex digits"))?);
                versions += 1;
            }
            // Items that are added some day must not break receivers of today.
            _ => versions += usize::from(name.starts_with('v')),
        }
        if digests.len() > MAX_SIGNATURES {
            return Err(malformed("it has too many signatures"));
        }
    }
    let t = t.ok_or_else(|| malformed("`t=` is missing"))?;
    let event_id = event_id.ok_or_else(|| malformed("`e=` is missing"))?;
    if digests.is_empty() {
        return Err(match versions {
            0 => malformed("`v1=` is missing"),
            _ => VerifyError::UnknownVersion(X_WEBHOOK_SIGNATURE),
        });
    }
    Ok(XSignature::V1 {
        t,
        event_id,
        digests,
    })
}

pub(super) fn standard_signatures(value: &str) -> Result<StandardSignatures, VerifyError> {
    let malformed = |problem| malformed(WEBHOOK_SIGNATURE, problem);
    if value.len() > MAX_LENGTH {
        return Err(malformed("it is too long"));
    }
    let mut found = StandardSignatures::default();
    let mut entries = 0_usize;
    for entry in value.split(' ').filter(|entry| !entry.is_empty()) {
        entries += 1;
        if entries > MAX_SIGNATURES {
            return Err(malformed("it has too many signatures"));
        }
        let Some((version, text)) = entry.split_once(',') else {
            return Err(malformed("an entry is not `<version>,<base64>`"));
        };
        match version {
            "v1" => found.v1.push(
                bytes(text).ok_or_else(|| malformed("a `v1` is not the base64 of 32 bytes"))?,
            ),
            "v1a" => found.v1a.push(
                bytes(text).ok_or_else(|| malformed("a `v1a` is not the base64 of 64 bytes"))?,
            ),
            _ => {}
        }
    }
    if entries == 0 {
        return Err(malformed("it is empty"));
    }
    if found.v1.is_empty() && found.v1a.is_empty() {
        return Err(VerifyError::UnknownVersion(WEBHOOK_SIGNATURE));
    }
    Ok(found)
}

/// Unix seconds: 1 to 12 decimal digits, nothing else.
pub(super) fn timestamp(header: &'static str, text: &str) -> Result<i64, VerifyError> {
    if (1..=12).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_digit())
        && let Ok(t) = text.parse()
    {
        return Ok(t);
    }
    Err(malformed(header, "the timestamp is not in Unix seconds"))
}

/// An event id: 1 to 256 printable characters without a comma, which would end
/// it, and without a full stop: the signed text has full stops between its
/// parts, and one in an id would let a part of the body pass for the id.
pub(super) fn event_id(header: &'static str, text: &str) -> Result<(), VerifyError> {
    let fits = |b: u8| b.is_ascii_graphic() && b != b',' && b != b'.';
    if (1..=256).contains(&text.len()) && text.bytes().all(fits) {
        return Ok(());
    }
    Err(malformed(
        header,
        "an event id has 1 to 256 printable characters other than `,` and `.`",
    ))
}

fn malformed(header: &'static str, problem: &'static str) -> VerifyError {
    VerifyError::MalformedHeader { header, problem }
}

fn digest(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    hex::decode_to_slice(text, &mut out).ok()?;
    Some(out)
}

fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}
