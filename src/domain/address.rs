//! Where webhooks may be sent: public addresses, unless configured otherwise.
//!
//! The URL is checked when a subscription is made and each address again when a
//! connection is opened, since a name may resolve to anything by then.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use url::{Host, Url};

/// Longest URL, in characters.
pub const MAX_URL_LENGTH: usize = 2048;

/// What receivers may be, beyond public HTTPS.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Networks that are allowed although they are not public.
    pub allowed: Vec<IpNet>,
    /// Whether plain HTTP is allowed.
    pub allow_http: bool,
}

impl Policy {
    /// Checks an address before connecting to it.
    ///
    /// # Errors
    /// With the reason, for the owner of the subscription to read.
    pub fn check_ip(&self, ip: IpAddr) -> Result<(), String> {
        match is_forbidden(ip) {
            Some(why) if !self.allows(ip) => Err(format!("{ip} is {why}")),
            _ => Ok(()),
        }
    }

    /// Checks a subscription's URL, without resolving its host.
    ///
    /// # Errors
    /// With the reason, for the owner of the subscription to read.
    pub fn check_url(&self, text: &str) -> Result<Url, String> {
        if text.chars().count() > MAX_URL_LENGTH {
            return Err(format!("a URL has at most {MAX_URL_LENGTH} characters"));
        }
        // Parsers drop or rewrite these, so the text would not be what is called.
        if text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '\\') {
            return Err("a URL has no spaces, control characters or backslashes".into());
        }
        let url = Url::parse(text).map_err(|e| format!("not a URL: {e}"))?;
        match url.scheme() {
            "https" => {}
            "http" if self.allow_http => {}
            "http" => return Err("the URL must begin with https://".into()),
            other => return Err(format!("the URL must begin with https://, not {other}:")),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("a URL must not hold a user name or password".into());
        }
        if url.fragment().is_some() {
            return Err("a URL must not have a fragment (`#…`)".into());
        }
        if url.port() == Some(0) {
            return Err("port 0 can't be reached".into());
        }
        match url.host() {
            None => return Err("the URL has no host".into()),
            Some(Host::Ipv4(ip)) => self.check_ip(ip.into())?,
            Some(Host::Ipv6(ip)) => self.check_ip(ip.into())?,
            Some(Host::Domain(name)) => self.check_name(name)?,
        }
        Ok(url)
    }

    /// Names that can't be public. What such a name resolves to is checked at
    /// the connect in any case; refusing it early only tells its owner sooner.
    fn check_name(&self, name: &str) -> Result<(), String> {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let last = name.rsplit('.').next().unwrap_or_default();
        let (why, allowed) = if last == "localhost" || last == "localdomain" {
            let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            (
                "this machine",
                loopback.into_iter().any(|ip| self.allows(ip)),
            )
        } else if name == "metadata.google.internal" || name == "metadata.goog" {
            let metadata = Ipv4Addr::new(169, 254, 169, 254);
            ("a metadata service", self.allows(metadata.into()))
        } else if matches!(last, "internal" | "local" | "arpa" | "lan" | "intranet") {
            ("a private name", !self.allowed.is_empty())
        } else if name.is_empty() || !name.contains('.') {
            ("not a public name: it has no dot", !self.allowed.is_empty())
        } else {
            return Ok(());
        };
        if allowed {
            return Ok(());
        }
        Err(format!("{name} is {why}"))
    }

    fn allows(&self, ip: IpAddr) -> bool {
        let canonical = ip.to_canonical();
        self.allowed
            .iter()
            .any(|net| net.contains(&ip) || net.contains(&canonical))
    }
}

/// Why an address may not be called: it is not a public one. The registries are
/// IANA's of special-purpose addresses (RFC 6890).
#[must_use]
pub fn is_forbidden(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(ip) => forbidden_v4(ip),
        IpAddr::V6(ip) => forbidden_v6(ip),
    }
}

fn forbidden_v4(ip: Ipv4Addr) -> Option<&'static str> {
    Some(match ip.octets() {
        // Not in a special-purpose network, but reserved by clouds for this.
        [169, 254, 169, 254] | [100, 100, 100, 200] | [168, 63, 129, 16] | [192, 0, 0, 192] => {
            "a metadata service"
        }
        [0, ..] => "unspecified",
        [127, ..] => "loopback",
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => "private",
        [100, 64..=127, ..] => "shared by a carrier (100.64.0.0/10)",
        [169, 254, ..] => "link-local",
        [192, 0, 0, _] => "reserved for protocols (192.0.0.0/24)",
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => "for documentation",
        [192, 88, 99, _] => "a 6to4 relay",
        [198, 18..=19, ..] => "for benchmarks (198.18.0.0/15)",
        [224..=239, ..] => "multicast",
        [255, 255, 255, 255] => "broadcast",
        [240..=255, ..] => "reserved (240.0.0.0/4)",
        _ => return None,
    })
}

fn forbidden_v6(ip: Ipv6Addr) -> Option<&'static str> {
    let segments = ip.segments();
    match segments {
        _ if ip.is_unspecified() => Some("unspecified"),
        _ if ip.is_loopback() => Some("loopback"),
        // What stands for an IPv4 address is as good as that address: mapped,
        // and NAT64 with the well-known prefix (RFC 6052).
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
            let [.., high, low] = segments;
            forbidden_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
        }
        [0, 0, 0, 0, 0, 0, ..] => Some("IPv4-compatible, which is withdrawn"),
        [0, 0, 0, 0, 0xffff, 0, ..] => Some("IPv4-translated (RFC 2765)"),
        [0x64, 0xff9b, 1, ..] => Some("NAT64 of a private network (64:ff9b:1::/48)"),
        [0x100, 0, 0, 0 | 1, ..] => Some("for discarding (100::/64)"),
        [0xfc00..=0xfdff, ..] => Some("private (fc00::/7)"),
        [0xfe80..=0xfebf, ..] => Some("link-local"),
        [0xfec0..=0xfeff, ..] => Some("site-local, which is withdrawn"),
        [0xff00..=0xffff, ..] => Some("multicast"),
        // Tunnels: the IPv4 address inside can be any, and no receiver needs one.
        [0x2001, 0, ..] => Some("Teredo (2001::/32)"),
        [0x2002, ..] => Some("6to4 (2002::/16)"),
        [0x2001, 0..=0x1ff, ..] => Some("reserved for protocols (2001::/23)"),
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Some("for documentation"),
        [0x2000..=0x3fff, ..] => None,
        _ => Some("reserved: not global unicast (2000::/3)"),
    }
}

#[cfg(test)]
mod tests;
