//! Percent-encoding (RFC 3986), read strictly: what is not well formed, or not
//! UTF-8 once decoded, is refused rather than replaced.

use std::borrow::Cow;

/// Decodes a segment of a path.
#[must_use]
pub fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => 16 * hex(bytes.next()?)? + hex(bytes.next()?)?,
            byte => byte,
        });
    }
    String::from_utf8(out).ok().map(Cow::Owned)
}

/// Decodes a name or a value of a query, where `+` is a space.
#[must_use]
pub fn decode_query(text: &str) -> Option<Cow<'_, str>> {
    if text.contains('+') {
        let spaced = text.replace('+', " ");
        decode(&spaced).map(|text| Cow::Owned(text.into_owned()))
    } else {
        decode(text)
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|d| u8::try_from(d).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_what_is_well_formed_only() {
        assert_eq!(decode("a%2Fb%c3%A4").as_deref(), Some("a/bä"));
        assert_eq!(decode("a+b").as_deref(), Some("a+b"));
        assert_eq!(decode_query("a+b%2B").as_deref(), Some("a b+"));
        for bad in ["%", "%2", "%zz", "%+1", "%ff", "%c3"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
