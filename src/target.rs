//! A subscription, ready to be sent to: its secrets and headers opened, its URL
//! and client certificate parsed, once and not for each attempt.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use crate::{
    domain::{
        certificate::ClientCertificate,
        id::Micros,
        jsonlogic::Rule,
        signature::{Secret, Signed, Signer},
        subscription::{Kind, Subscription},
    },
    seal::Keyring,
};

/// A subscription, ready to be sent to.
pub struct Target {
    /// The subscription.
    pub subscription: Subscription,
    /// Where its attempts go; means nothing for a stream.
    pub uri: Uri,
    /// Which URL that is, as a number.
    pub url: u64,
    /// Which host's share that takes, as a number; 0: none's, it is a stream.
    pub host: u64,
    /// Its own headers.
    pub headers: HeaderMap,
    /// What it shows to its receiver. Connections belong to one of these: with
    /// another one, or none, a connection is another.
    pub client_certificate: Option<Arc<ClientCertificate>>,
    /// Which payloads it wants.
    pub filter: Option<Rule>,
    alone: Signer,
    overlap: Option<(Signer, Micros)>,
}

impl Target {
    /// Opens a subscription's secrets.
    ///
    /// # Errors
    /// Where they can't be opened, or what is stored is not what was checked.
    pub fn new(s: Subscription, keyring: &Keyring) -> Result<Self, String> {
        let place = s.id.to_string();
        let open = |sealed| -> Result<Secret, String> {
            let text = keyring
                .open_secret(&place, sealed)
                .map_err(|e| e.to_string())?;
            Secret::parse_any(&text).map_err(|e| e.to_string())
        };
        let secret = open(&s.secret)?;
        let overlap = match &s.previous {
            Some(p) => Some((
                Signer::new(s.scheme, &secret, Some(&open(&p.secret)?)),
                p.until,
            )),
            None => None,
        };
        let certificate = |sealed| -> Result<Arc<ClientCertificate>, String> {
            let pem = keyring
                .open_certificate(s.id, sealed)
                .map_err(|e| e.to_string())?;
            let read = ClientCertificate::parse(&pem).map_err(|e| e.to_string())?;
            Ok(Arc::new(read))
        };
        let client_certificate = s.client_certificate.as_ref().map(certificate).transpose()?;
        let own = keyring
            .open_headers(s.id, &s.headers)
            .map_err(|e| e.to_string())?;
        let mut headers = HeaderMap::with_capacity(own.len());
        for (name, value) in &own {
            let name: HeaderName = name.parse().map_err(|_| format!("bad header {name}"))?;
            let value: HeaderValue = value.parse().map_err(|_| format!("bad value of {name}"))?;
            headers.insert(name, value);
        }
        let (uri, host) = match s.kind {
            Kind::Webhook => {
                let uri: Uri = s.url.parse().map_err(|e| format!("bad URL: {e}"))?;
                let host = host_of(&uri);
                (uri, host)
            }
            Kind::Stream => (Uri::default(), 0),
        };
        Ok(Self {
            filter: filter(&s),
            url: number_of(&s.url),
            host,
            uri,
            headers,
            client_certificate,
            alone: Signer::new(s.scheme, &secret, None),
            overlap,
            subscription: s,
        })
    }

    /// Signs an attempt at that time, with both secrets during an overlap.
    #[must_use]
    pub fn sign(&self, now: Micros, event_id: &str, body: &[u8]) -> Signed {
        let signer = match &self.overlap {
            Some((both, until)) if now < *until => both,
            _ => &self.alone,
        };
        signer.sign(now.div_euclid(1_000_000), event_id, body)
    }
}

/// A number for a text, the same in the whole process and never 0.
fn number_of(text: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish().max(1)
}

/// A number for the host that a URL names, however it spells it: with another port
/// it is the same machine.
fn host_of(uri: &Uri) -> u64 {
    let host = uri.host().unwrap_or_default().trim_end_matches('.');
    number_of(&host.to_ascii_lowercase())
}

/// A subscription's filter. One that can't be compiled is a later version's, for
/// each was when it was stored: an event too many does less harm than one too few.
fn filter(s: &Subscription) -> Option<Rule> {
    let compiled = Rule::parse(s.filter.as_deref()?);
    compiled
        .inspect_err(|e| {
            tracing::error!(
                subscription.id = %s.id, error.message = %e,
                "filter can't be read: every payload passes it"
            );
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    // D3: one host, however it is written and whatever the port.
    #[test]
    fn hosts_are_told_apart_by_name() {
        let host = |text: &str| host_of(&text.parse().unwrap());
        for same in [
            "https://A.example/x",
            "https://a.example.:443/y?z",
            "http://a.example/",
            "https://a.example:8443/",
        ] {
            assert_eq!(host(same), host("https://a.example/"), "{same}");
        }
        assert_ne!(host("https://a.example/"), host("https://b.example/"));
        assert_ne!(host("https://a.example/"), 0);
    }
}
