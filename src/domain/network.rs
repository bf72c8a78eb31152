//! Where a call came from: addresses and networks as texts have them, and what
//! proxies say.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr as _,
};

use ipnet::{IpNet, Ipv4Net};

/// Bits of an IPv4-mapped IPv6 address before the IPv4 address.
const MAPPED: u8 = 96;

/// Reads a network in CIDR notation, or an address, which stands for itself.
/// What is returned has one form: no bits after the prefix, IPv4-mapped IPv6 as
/// IPv4.
#[must_use]
pub fn parse_network(text: &str) -> Option<IpNet> {
    let net = match text.split_once('/') {
        Some((address, prefix)) if prefix.bytes().all(|b| b.is_ascii_digit()) => {
            IpNet::new(address.parse().ok()?, prefix.parse().ok()?).ok()?
        }
        Some(_) => return None,
        None => IpNet::from(IpAddr::from_str(text).ok()?),
    };
    let net = match net {
        IpNet::V6(v6) if v6.prefix_len() >= MAPPED => match v6.addr().to_ipv4_mapped() {
            Some(v4) => IpNet::V4(Ipv4Net::new(v4, v6.prefix_len() - MAPPED).ok()?),
            None => net,
        },
        net => net,
    };
    Some(net.trunc())
}

/// Reads an address; IPv4-mapped IPv6 becomes IPv4.
#[must_use]
pub fn parse_address(text: &str) -> Option<IpAddr> {
    IpAddr::from_str(text).ok().map(|ip| ip.to_canonical())
}

/// The address that the `hops`-th proxy from here says a call came from:
/// the `hops`-th entry from the right of all lines of `X-Forwarded-For` together.
/// What stands further left is whatever the caller wrote. None where there are
/// fewer entries, or where that one is no address.
pub fn forwarded<'a>(
    lines: impl DoubleEndedIterator<Item = &'a [u8]>,
    hops: usize,
) -> Option<IpAddr> {
    let entry = lines
        .rev()
        .flat_map(|line| line.rsplit(|b| *b == b','))
        .nth(hops.checked_sub(1)?)?;
    with_port(std::str::from_utf8(entry).ok()?.trim())
}

/// An address as proxies write it: some add the port, and then IPv6 stands in
/// brackets.
fn with_port(text: &str) -> Option<IpAddr> {
    let address = parse_address(text).or_else(|| SocketAddr::from_str(text).ok().map(|s| s.ip()));
    address
        .or_else(|| {
            let inner = text.strip_prefix('[')?.strip_suffix(']')?;
            Ipv6Addr::from_str(inner).ok().map(IpAddr::V6)
        })
        .map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // K2: one form of each network.
    #[test]
    fn networks_have_one_form() {
        for (text, form) in [
            ("203.0.113.0/24", "203.0.113.0/24"),
            ("203.0.113.77/24", "203.0.113.0/24"),
            ("203.0.113.77", "203.0.113.77/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:DB8:0::1/32", "2001:db8::/32"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("::ffff:203.0.113.77/120", "203.0.113.0/24"),
            ("::ffff:203.0.113.77", "203.0.113.77/32"),
            // Wider than all of IPv4: it is IPv6 that is meant.
            ("::/0", "::/0"),
        ] {
            assert_eq!(parse_network(text).unwrap().to_string(), form, "{text}");
        }
        for bad in [
            "",
            "203.0.113.0/33",
            "203.0.113.0/-1",
            "203.0.113.0/+8",
            "203.0.113.0/",
            "/8",
            "203.0.113/24",
            "203.0.113.0/24 ",
            "010.0.0.0/8",
            "2001:db8::/129",
            "fe80::1%eth0",
            "example.com",
            "203.0.113.0/255.255.255.0",
            "*",
        ] {
            assert_eq!(parse_network(bad), None, "{bad}");
        }
    }

    fn read(lines: &[&str], hops: usize) -> Option<String> {
        let lines = lines.iter().map(|l| l.as_bytes());
        forwarded(lines, hops).map(|ip| ip.to_string())
    }

    // K2: entries are counted from the right, over all lines; the leftmost is
    // never taken as it came.
    #[test]
    fn the_trusted_proxies_are_counted_from_the_right() {
        let lines = ["6.6.6.6, 198.51.100.1", "203.0.113.9 ,10.0.0.1"];
        for (hops, address) in [
            (0, None),
            (1, Some("10.0.0.1")),
            (2, Some("203.0.113.9")),
            (3, Some("198.51.100.1")),
            (4, Some("6.6.6.6")),
            (5, None),
        ] {
            assert_eq!(read(&lines, hops).as_deref(), address, "{hops}");
        }
        for (entry, address) in [
            ("::ffff:203.0.113.9", Some("203.0.113.9")),
            ("203.0.113.9:4711", Some("203.0.113.9")),
            ("[2001:db8::1]:443", Some("2001:db8::1")),
            ("[2001:db8::1]", Some("2001:db8::1")),
            ("[::ffff:203.0.113.9]:1", Some("203.0.113.9")),
            ("2001:DB8::1", Some("2001:db8::1")),
            ("unknown", None),
            ("", None),
            ("_hidden", None),
            ("203.0.113.9.", None),
            ("203.0.113.9:port", None),
            ("[203.0.113.9]", None),
        ] {
            let line = format!("6.6.6.6, {entry}");
            assert_eq!(read(&[&line], 1).as_deref(), address, "{entry}");
        }
        assert_eq!(read(&[], 1), None);
        assert_eq!(forwarded([&b"6.6.6.6,\xff"[..]].into_iter(), 1), None);
    }

    proptest! {
        // K2: whatever a caller sends along changes nothing.
        #[test]
        fn what_a_caller_claims_does_not_count(
            claimed in proptest::collection::vec(any::<Vec<u8>>(), 0..4),
            hops in 1usize..4,
        ) {
            let proxies = ["203.0.113.9", "10.0.0.2", "10.0.0.1"];
            let added = proxies[..hops].join(", ");
            let lines = claimed.iter().map(Vec::as_slice).chain([added.as_bytes()]);
            let lines: Vec<&[u8]> = lines.collect();
            let found = forwarded(lines.into_iter(), hops);
            prop_assert_eq!(found, parse_address("203.0.113.9"));
        }
    }
}
