//! Asks a URL to prove that it wants webhooks.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Version, header};
use http_body_util::{BodyExt as _, Limited};

use super::{Failure, Kept, Leave, Sender, SignedBody};
use crate::{domain::signature::X_WEBHOOK_CHALLENGE, target::Target};

/// How long the answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most bytes of an answer: the challenge's own, and blanks around them.
const MOST: usize = 256;
const BODY: &[u8] = br#"{"type":"webhook.challenge"}"#;

/// Why a URL did not prove it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unproven {
    /// Deliveries may not go to its addresses.
    NotAllowed,
    /// What came back in place of the challenge. Nothing of an answer's body is in
    /// it: whoever asks may not be who may read that.
    Got(String),
}

impl Sender {
    /// Asks a subscription's URL for a challenge that is in a header, over the
    /// connections that its deliveries take: what answers with that very text
    /// knows what it is asked for. A server that answers with what it was sent
    /// does not: the body has no challenge.
    ///
    /// # Errors
    /// What came back in its place.
    pub async fn challenge(&self, target: &Target) -> Result<(), Unproven> {
        let got = |what: String| Err(Unproven::Got(what));
        let mut random = [0; 32];
        if getrandom::fill(&mut random).is_err() {
            return got("nothing: this server has no random numbers".to_owned());
        }
        let challenge = URL_SAFE_NO_PAD.encode(random);
        let Ok(value) = HeaderValue::try_from(&challenge) else {
            return got("nothing: the challenge is no header".to_owned());
        };
        let mut request = Request::new(SignedBody {
            data: Some(Bytes::from_static(BODY)),
            leave: Leave {
                signed_at: (self.clock)(),
                window: PATIENCE,
                fence: None,
                kept: Kept::default(),
            },
            clock: self.clock.clone(),
        });
        *request.method_mut() = Method::POST;
        *request.uri_mut() = target.uri.clone();
        *request.version_mut() = Version::HTTP_11;
        let headers = request.headers_mut();
        headers.extend(target.headers.clone());
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json);
        headers.insert(header::USER_AGENT, self.agent.clone());
        headers.insert(X_WEBHOOK_CHALLENGE, value);
        let client = self.clients.of(target.client_certificate.as_ref());
        let answer = async {
            let response = client.request(request).await.map_err(|e| {
                let failure = Failure::of(&e);
                tracing::debug!(error.message = failure.detail, "challenge failed");
                match failure.error {
                    "endpoint_not_allowed" => Unproven::NotAllowed,
                    class => Unproven::Got(format!("`{class}`")),
                }
            })?;
            let status = response.status();
            if !status.is_success() {
                return got(format!("status {}", status.as_u16()));
            }
            let body = Limited::new(response.into_body(), MOST).collect().await;
            match body.map(http_body_util::Collected::to_bytes) {
                Ok(body) if body.trim_ascii() == challenge.as_bytes() => Ok(()),
                _ => got(format!("status {} with another body", status.as_u16())),
            }
        };
        tokio::time::timeout(PATIENCE, answer)
            .await
            .unwrap_or_else(|_| got(format!("no answer within {PATIENCE:?}")))
    }
}
