//! A subscription as answers show it.

use crate::{
    directory::Directory,
    domain::{
        certificate::Facts,
        delivery::Schedule,
        id::Micros,
        signature::Scheme,
        subscription::{Headers, Kind, Ordering, PayloadFormat, Subscription},
    },
    proto::v1::{self, RetryPreset, RetrySchedule, SignatureScheme},
    rpc::convert::timestamp,
};

pub(super) const fn scheme(scheme: Scheme) -> SignatureScheme {
    match scheme {
        Scheme::V1 => SignatureScheme::V1,
        Scheme::Plain => SignatureScheme::Plain,
        Scheme::Ed25519 => SignatureScheme::Ed25519,
    }
}

pub(super) const fn format(format: PayloadFormat) -> v1::PayloadFormat {
    match format {
        PayloadFormat::Standard => v1::PayloadFormat::Standard,
        PayloadFormat::CloudEventsStructured => v1::PayloadFormat::CloudeventsStructured,
        PayloadFormat::CloudEventsBinary => v1::PayloadFormat::CloudeventsBinary,
    }
}

const fn ordering(ordering: Ordering) -> v1::Ordering {
    match ordering {
        Ordering::Off => v1::Ordering::Off,
        Ordering::Block => v1::Ordering::Block,
        Ordering::Skip => v1::Ordering::Skip,
        Ordering::Park => v1::Ordering::Park,
    }
}

/// A schedule that is a preset's is shown as that preset.
pub(super) fn schedule(schedule: &Schedule) -> RetrySchedule {
    let preset = if *schedule == Schedule::standard() {
        RetryPreset::Standard
    } else if *schedule == Schedule::burst() {
        RetryPreset::Burst
    } else {
        return RetrySchedule {
            preset: RetryPreset::Unspecified.into(),
            max_attempts: schedule.max_attempts.into(),
            backoff_seconds: schedule
                .backoff
                .iter()
                .map(|s| i32::try_from(*s).unwrap_or(i32::MAX))
                .collect(),
        };
    };
    RetrySchedule {
        preset: preset.into(),
        ..RetrySchedule::default()
    }
}

/// What may be shown of a client certificate.
pub(super) fn certificate(facts: Facts) -> v1::ClientCertificateInfo {
    v1::ClientCertificateInfo {
        subject: facts.subject,
        serial_number: facts.serial_number,
        fingerprint_sha256: facts.fingerprint,
        expire_time: Some(timestamp(facts.expires_at)),
    }
}

/// Shows a subscription with its headers, without its secret and private key.
pub(super) fn view(
    s: &Subscription,
    headers: Headers,
    certificate: Option<v1::ClientCertificateInfo>,
    directory: &Directory,
    now: Micros,
) -> v1::Subscription {
    let number = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    v1::Subscription {
        id: s.id.to_string(),
        tenant: directory.tenant_name(s.tenant),
        url: s.url.clone(),
        event_types: s.event_types.clone(),
        headers: headers.into_iter().collect(),
        description: s.description.clone(),
        enabled: Some(s.disabled.is_none()),
        signature_scheme: scheme(s.scheme).into(),
        retry_schedule: s.schedule.as_ref().map(schedule),
        timeout_seconds: number(s.timeout),
        max_in_flight: number(s.max_in_flight),
        max_age_seconds: s.max_age,
        metadata: s.metadata.iter().cloned().collect(),
        payload_format: format(s.format).into(),
        disabled_reason: s
            .disabled
            .as_ref()
            .map(|d| d.reason.clone())
            .unwrap_or_default(),
        disable_time: s.disabled.as_ref().map(|d| timestamp(d.at)),
        public_key: s.public_key.clone(),
        previous_secret_expire_time: s
            .previous
            .as_ref()
            .filter(|p| p.until > now)
            .map(|p| timestamp(p.until)),
        create_time: Some(timestamp(s.created_at)),
        update_time: Some(timestamp(s.updated_at)),
        client_certificate: None,
        client_certificate_info: certificate,
        filter: s.filter.clone().map(String::into_bytes),
        ordering: ordering(s.ordering).into(),
        kind: match s.kind {
            Kind::Webhook => v1::SubscriptionKind::Webhook,
            Kind::Stream => v1::SubscriptionKind::Stream,
        }
        .into(),
        expire_after_seconds: s.lifetime.map_or(0, |l| l.seconds),
        expire_time: s.lifetime.map(|l| timestamp(l.ends_at)),
    }
}
