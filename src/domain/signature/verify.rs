//! Checking signatures, as a receiver does.

use subtle::{Choice, ConstantTimeEq as _};

use super::{
    HmacSha256, MAX_AGE_S, MAX_AHEAD_S, Scheme, VerifyError, VerifyingKey, WEBHOOK_ID,
    WEBHOOK_SIGNATURE, WEBHOOK_TIMESTAMP, X_WEBHOOK_EVENT_ID, X_WEBHOOK_SIGNATURE,
    X_WEBHOOK_TIMESTAMP,
    header::{self, StandardSignatures, XSignature},
    sign,
};

/// A delivery that is what the sender signed, and fresh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The event's id: the same in every repetition.
    pub event_id: String,
    /// When it was signed, Unix seconds.
    pub timestamp: i64,
}

/// Checks deliveries against one or more keys; during a rotation a receiver may
/// hold both.
#[derive(Clone)]
pub struct Verifier {
    keys: Vec<Keys>,
    scheme: Option<Scheme>,
}

#[derive(Clone)]
struct Keys {
    hmac: Option<Hmac>,
    public: Option<ed25519_dalek::VerifyingKey>,
}

#[derive(Clone)]
struct Hmac {
    text: HmacSha256,
    standard: HmacSha256,
}

/// What one header signs, and whether a key made it.
struct Claim<'h> {
    t: &'h str,
    event_id: &'h str,
    /// The headers that `t` and `event_id` were read from.
    from: (&'static str, &'static str),
}

impl Verifier {
    /// A verifier that takes whichever scheme the headers show.
    ///
    /// Name the scheme with [`Self::scheme`] where it is known: a digest of the
    /// plain scheme does not cover the event's id.
    #[must_use]
    pub fn new(keys: &[VerifyingKey]) -> Self {
        let keys = keys.iter().map(|key| Keys {
            hmac: key.secret.as_ref().map(|secret| Hmac {
                text: secret.text_hmac(),
                standard: secret.standard_hmac(),
            }),
            public: key.public,
        });
        Self {
            keys: keys.collect(),
            scheme: None,
        }
    }

    /// Insists on one scheme: its header must be there and in its form.
    #[must_use]
    pub fn scheme(self, scheme: Scheme) -> Self {
        Self {
            scheme: Some(scheme),
            ..self
        }
    }

    /// Checks a delivery: `headers` gives a header's value by its lower-case
    /// name, `body` is the raw body, `now_s` the receiver's clock in Unix seconds.
    ///
    /// Each signature header that is there and that the keys can check must
    /// hold, and the headers must agree on the event's id and the timestamp.
    /// The one exception: a plain digest, which during a rotation is the old
    /// secret's, may fail where `webhook-signature` holds.
    ///
    /// # Errors
    /// With the first thing that is wrong, in the order: a header missing or
    /// malformed, headers that disagree, the age, the signatures.
    pub fn verify<'h>(
        &self,
        headers: impl Fn(&str) -> Option<&'h str>,
        body: &[u8],
        now_s: i64,
    ) -> Result<Verified, VerifyError> {
        let x = self.x_signature(&headers)?;
        let standard = headers(WEBHOOK_SIGNATURE)
            .map(header::standard_signatures)
            .transpose()?;
        if self.scheme == Some(Scheme::Ed25519)
            && standard.as_ref().is_none_or(|s| s.v1a.is_empty())
        {
            return Err(match standard {
                None => VerifyError::MissingHeader(WEBHOOK_SIGNATURE),
                Some(_) => VerifyError::UnknownVersion(WEBHOOK_SIGNATURE),
            });
        }
        let x_claim = x.as_ref().map(|x| x_claim(x, &headers)).transpose()?;
        let standard_claim = match &standard {
            None => None,
            Some(_) => Some(Claim {
                t: headers(WEBHOOK_TIMESTAMP)
                    .ok_or(VerifyError::MissingHeader(WEBHOOK_TIMESTAMP))?,
                event_id: headers(WEBHOOK_ID).ok_or(VerifyError::MissingHeader(WEBHOOK_ID))?,
                from: (WEBHOOK_TIMESTAMP, WEBHOOK_ID),
            }),
        };
        let claim =
            x_claim
                .as_ref()
                .or(standard_claim.as_ref())
                .ok_or(VerifyError::MissingHeader(if self.can_check_x() {
                    X_WEBHOOK_SIGNATURE
                } else {
                    WEBHOOK_SIGNATURE
                }))?;
        let timestamp = agreed(claim, &headers)?;
        fresh(timestamp, now_s)?;

        let x_holds = match (&x, &x_claim) {
            (Some(x), Some(claim)) => Some(self.x_holds(x, claim, body)),
            _ => None,
        };
        let standard_holds = match (&standard, &standard_claim) {
            (Some(s), Some(claim)) => Some(self.standard_holds(s, claim, body)),
            _ => None,
        };
        let plain = matches!(x, Some(XSignature::Plain(_)));
        if x_holds == Some(false) && !(plain && standard_holds == Some(true)) {
            return Err(VerifyError::NoMatchingSignature(X_WEBHOOK_SIGNATURE));
        }
        if standard_holds == Some(false) {
            return Err(VerifyError::NoMatchingSignature(WEBHOOK_SIGNATURE));
        }
        Ok(Verified {
            event_id: claim.event_id.to_owned(),
            timestamp,
        })
    }

    /// A public key alone says nothing about an HMAC.
    fn can_check_x(&self) -> bool {
        self.keys.iter().any(|keys| keys.hmac.is_some())
    }

    fn x_signature<'h>(
        &self,
        headers: &impl Fn(&str) -> Option<&'h str>,
    ) -> Result<Option<XSignature<'h>>, VerifyError> {
        let required = matches!(self.scheme, Some(Scheme::V1 | Scheme::Plain));
        let x = match headers(X_WEBHOOK_SIGNATURE) {
            None if required => return Err(VerifyError::MissingHeader(X_WEBHOOK_SIGNATURE)),
            Some(value) if required || self.can_check_x() => header::x_signature(value)?,
            _ => return Ok(None),
        };
        let problem = match (self.scheme, &x) {
            (Some(Scheme::Plain), XSignature::V1 { .. }) => {
                "the plain scheme is a digest alone, this is `t=…,e=…,v1=…`"
            }
            (Some(Scheme::V1 | Scheme::Ed25519), XSignature::Plain(_)) => {
                "this scheme is `t=…,e=…,v1=…`, this is a digest alone"
            }
            _ => return Ok(Some(x)),
        };
        Err(VerifyError::MalformedHeader {
            header: X_WEBHOOK_SIGNATURE,
            problem,
        })
    }

    fn x_holds(&self, x: &XSignature<'_>, claim: &Claim<'_>, body: &[u8]) -> bool {
        let mut holds = Choice::from(0);
        for hmac in self.keys.iter().filter_map(|keys| keys.hmac.as_ref()) {
            match x {
                XSignature::V1 { digests, .. } => {
                    let own = sign::v1_mac(&hmac.text, claim.t, claim.event_id, body);
                    for digest in digests {
                        holds |= own.ct_eq(digest);
                    }
                }
                XSignature::Plain(digest) => {
                    holds |= sign::plain_mac(&hmac.text, claim.t, body).ct_eq(digest);
                }
            }
        }
        holds.into()
    }

    fn standard_holds(&self, given: &StandardSignatures, claim: &Claim<'_>, body: &[u8]) -> bool {
        let mut holds = Choice::from(0);
        for keys in &self.keys {
            // Where a version is insisted on, another one does not do instead.
            if let (Some(hmac), true) = (&keys.hmac, self.scheme != Some(Scheme::Ed25519)) {
                let own = sign::standard_mac(&hmac.standard, claim.t, claim.event_id, body);
                for digest in &given.v1 {
                    holds |= own.ct_eq(digest);
                }
            }
            if let (Some(public), false) = (&keys.public, given.v1a.is_empty()) {
                let content = sign::standard_content(claim.t, claim.event_id, body);
                for signature in &given.v1a {
                    let signature = ed25519_dalek::Signature::from_bytes(signature);
                    let ok = public.verify_strict(&content, &signature).is_ok();
                    holds |= Choice::from(u8::from(ok));
                }
            }
        }
        holds.into()
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier")
            .field("keys", &self.keys.len())
            .field("scheme", &self.scheme)
            .finish()
    }
}

fn x_claim<'h>(
    x: &XSignature<'h>,
    headers: &impl Fn(&str) -> Option<&'h str>,
) -> Result<Claim<'h>, VerifyError> {
    Ok(match *x {
        XSignature::V1 { t, event_id, .. } => Claim {
            t,
            event_id,
            from: (X_WEBHOOK_SIGNATURE, X_WEBHOOK_SIGNATURE),
        },
        XSignature::Plain(_) => Claim {
            t: headers(X_WEBHOOK_TIMESTAMP)
                .ok_or(VerifyError::MissingHeader(X_WEBHOOK_TIMESTAMP))?,
            event_id: headers(X_WEBHOOK_EVENT_ID)
                .ok_or(VerifyError::MissingHeader(X_WEBHOOK_EVENT_ID))?,
            from: (X_WEBHOOK_TIMESTAMP, X_WEBHOOK_EVENT_ID),
        },
    })
}

/// The timestamp that is signed, once every header that says when or which
/// event says the same: handlers read the unsigned ones, too.
fn agreed<'h>(
    claim: &Claim<'_>,
    headers: &impl Fn(&str) -> Option<&'h str>,
) -> Result<i64, VerifyError> {
    let timestamp = header::timestamp(claim.from.0, claim.t)?;
    header::event_id(claim.from.1, claim.event_id)?;
    for name in [X_WEBHOOK_EVENT_ID, WEBHOOK_ID] {
        if headers(name).is_some_and(|id| id != claim.event_id) {
            return Err(VerifyError::EventIdMismatch(name));
        }
    }
    for name in [X_WEBHOOK_TIMESTAMP, WEBHOOK_TIMESTAMP] {
        if let Some(text) = headers(name)
            && header::timestamp(name, text)? != timestamp
        {
            return Err(VerifyError::TimestampMismatch(name));
        }
    }
    Ok(timestamp)
}

fn fresh(timestamp: i64, now_s: i64) -> Result<(), VerifyError> {
    let age_s = now_s.saturating_sub(timestamp);
    if age_s > MAX_AGE_S {
        return Err(VerifyError::TooOld { age_s });
    }
    if age_s < -MAX_AHEAD_S {
        return Err(VerifyError::InFuture {
            ahead_s: age_s.saturating_neg(),
        });
    }
    Ok(())
}
