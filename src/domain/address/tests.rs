use proptest::prelude::*;

use super::*;

fn allowing(cidrs: &[&str]) -> Policy {
    Policy {
        allowed: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
        allow_http: true,
    }
}

// A10
// Z3
#[test]
fn special_addresses_are_forbidden() {
    for ip in [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "10.255.255.255",
        "100.64.0.1",
        "100.127.255.255",
        "100.100.100.200",
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",
        "169.254.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.1",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.7",
        "203.0.113.9",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:0:127.0.0.1",
        "64:ff9b::127.0.0.1",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::1",
        "64:ff9b:1::8.8.8.8",
        "100::1",
        "2001::1",
        "2001:0:7f00:1::",
        "2001:10::1",
        "2001:20::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:808:808::1",
        "3fff::1",
        "3fff:fff::1",
        "4000::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "febf::1",
        "fec0::1",
        "ff02::1",
    ] {
        let ip: IpAddr = ip.parse().unwrap();
        assert!(is_forbidden(ip).is_some(), "{ip}");
        assert!(Policy::default().check_ip(ip).is_err(), "{ip}");
    }
}

// A10
#[test]
fn public_addresses_are_not() {
    for ip in [
        "1.1.1.1",
        "8.8.8.8",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "169.253.255.255",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.1.0",
        "192.167.255.255",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8",
        "2001:200::1",
        "2001:4860:4860::8888",
        "2606:4700::1111",
        "3ffe::1",
        "3fff:1000::1",
    ] {
        let ip: IpAddr = ip.parse().unwrap();
        assert_eq!(is_forbidden(ip), None, "{ip}");
    }
}

// A10
// Z3
#[test]
fn other_spellings_are_seen_through() {
    let https = Policy::default();
    for url in [
        "https://127.0.0.1/",
        "https://127.1/",
        "https://127.0.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0x7f.1/",
        "https://0x7F.0x0.0x0.0x1/",
        "https://0177.0.0.1/",
        "https://017700000001/",
        "https://127.0.0.1./",
        "https://127%2e0%2e0%2e1/",
        "https://127。0。0。1/",
        "https://１２７.0.0.1/",
        "https://①②⑦.0.0.1/",
        "https://0/",
        "https://0.0.0.0:8443/",
        "https://[::1]/",
        "https://[::]/",
        "https://[0:0:0:0:0:0:0:1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[::ffff:7f00:1]/",
        "https://[::127.0.0.1]/",
        "https://[64:ff9b::7f00:1]/",
        "https://[2002:7f00:1::]/",
        "https://[fe80::1]/",
        "https://[fd00::1]/",
        "https://169.254.169.254/latest/meta-data/",
        "https://2852039166/",
        "https://0xa9fea9fe/",
        "https://0251.0376.0251.0376/",
        "https://[::ffff:a9fe:a9fe]/",
        "https://10.1/",
        "https://0xa000001/",
        "https://012.0.0.1/",
        "https://192.168.257/",
        "https://localhost/",
        "https://LOCALHOST/",
        "https://localhost./",
        "https://a.localhost/",
        "https://a.localhost./",
        "https://localhost.localdomain/",
        "https://ｌｏｃａｌｈｏｓｔ/",
        "https://loc%61lhost/",
        "https://metadata.google.internal/",
        "https://metadata.google.internal./",
        "https://METADATA.goog/",
        "https://redis.internal/",
        "https://printer.local/",
        "https://router.home.arpa/",
        "https://kubernetes/",
        "https://./",
    ] {
        assert!(https.check_url(url).is_err(), "{url}");
    }
}

// A10
#[test]
fn urls_that_are_no_endpoint_are_refused() {
    let https = Policy::default();
    let long = format!("https://example.com/{}", "x".repeat(2048));
    for (url, why) in [
        ("", "not a URL"),
        ("example.com/webhook", "not a URL"),
        ("https://", "not a URL"),
        ("https://256.256.256.256/", "not a URL"),
        ("https://[::1/", "not a URL"),
        ("https://[fe80::1%25eth0]/", "not a URL"),
        ("http://example.com/", "must begin with https"),
        ("ftp://example.com/", "must begin with https"),
        ("file:///etc/passwd", "must begin with https"),
        ("gopher://example.com/", "must begin with https"),
        ("javascript:alert(1)", "must begin with https"),
        ("https://user@example.com/", "user name"),
        ("https://user:pw@example.com/", "user name"),
        ("https://example.com@127.0.0.1/", "user name"),
        ("https://example.com/#a", "fragment"),
        ("https://example.com/#", "fragment"),
        ("https://example.com:0/", "port 0"),
        ("https://example.com:65536/", "not a URL"),
        (" https://example.com/", "no spaces"),
        ("https://exam\tple.com/", "no spaces"),
        ("https://example.com/a\r\nHost: x", "no spaces"),
        ("https:\\\\example.com", "no spaces"),
        (&long, "2048"),
    ] {
        let error = https.check_url(url).unwrap_err();
        assert!(error.contains(why), "{url}: {error}");
    }
}

// A10
#[test]
fn public_https_endpoints_are_taken() {
    for (url, as_called) in [
        ("https://example.com", "https://example.com/"),
        (
            "https://Example.com:8443/a?b=c",
            "https://example.com:8443/a?b=c",
        ),
        ("https://8.8.8.8/", "https://8.8.8.8/"),
        ("https://[2606:4700::1111]/", "https://[2606:4700::1111]/"),
        ("https://bücher.example/", "https://xn--bcher-kva.example/"),
        (
            "https://localhost.example.com/",
            "https://localhost.example.com/",
        ),
        (
            "https://internal.example.com/",
            "https://internal.example.com/",
        ),
    ] {
        let taken = Policy::default().check_url(url).unwrap();
        assert_eq!(taken.as_str(), as_called);
    }
}

// A10
#[test]
fn a_configured_network_is_allowed_and_no_other() {
    let loopback = allowing(&["127.0.0.0/8", "::1/128"]);
    for url in [
        "http://127.0.0.1:9090/webhook",
        "http://localhost:9090/webhook",
        "http://a.localhost/",
        "http://[::1]:9090/",
        "http://[::ffff:127.0.0.1]/",
        "https://localhost/",
    ] {
        assert!(loopback.check_url(url).is_ok(), "{url}");
    }
    for url in [
        "http://10.0.0.1/",
        "http://169.254.169.254/",
        "http://metadata.google.internal/",
        "http://[fd00::1]/",
    ] {
        assert!(loopback.check_url(url).is_err(), "{url}");
    }
    let private = allowing(&["10.0.0.0/8"]);
    assert!(private.check_url("http://hooks.corp.internal/").is_ok());
    assert!(private.check_url("http://localhost/").is_err());
    assert!(private.check_ip("10.9.8.7".parse().unwrap()).is_ok());
    assert!(private.check_ip("::ffff:10.9.8.7".parse().unwrap()).is_ok());
    assert!(private.check_ip("192.168.0.1".parse().unwrap()).is_err());
}

proptest! {
    // Z3
    #[test]
    fn any_text_is_answered(text in ".{0,80}") {
        let _ = Policy::default().check_url(&text);
        let _ = Policy::default().check_url(&format!("https://{text}"));
    }

    // Z3
    #[test]
    fn a_mapped_address_is_judged_as_what_it_maps(bits: u32) {
        let v4 = Ipv4Addr::from(bits);
        prop_assert_eq!(is_forbidden(v4.into()), is_forbidden(v4.to_ipv6_mapped().into()));
        let decimal = Policy::default().check_url(&format!("https://{bits}/"));
        prop_assert_eq!(decimal.is_err(), is_forbidden(v4.into()).is_some());
        let hex = Policy::default().check_url(&format!("https://{bits:#x}/"));
        prop_assert_eq!(hex.is_err(), is_forbidden(v4.into()).is_some());
    }
}
