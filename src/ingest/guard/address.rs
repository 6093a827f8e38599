//! Which network addresses a fetch may connect to.
//!
//! Pure: an address in, a class out. Addresses that carry an IPv4 address inside (IPv4-mapped, 6to4, NAT64, …) are judged
//! by what they carry, because a gateway on the way would deliver there. Everything in IPv6 outside the global unicast
//! block is refused unless it is named here, so that a block allocated later is closed until somebody opens it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What an address is, and with it whether a fetch may go there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Public,
    /// This machine or its neighbours: only with `--allow-private-origins`.
    Private(&'static str),
    /// No place a media file can come from, or one that hands out credentials: never.
    Never(&'static str),
}

impl Class {
    pub fn allowed(self, allow_private: bool) -> bool {
        match self {
            Class::Public => true,
            Class::Private(_) => allow_private,
            Class::Never(_) => false,
        }
    }
}

pub fn classify(address: IpAddr) -> Class {
    match address {
        IpAddr::V4(address) => classify_v4(address),
        IpAddr::V6(address) => classify_v6(address),
    }
}

fn classify_v4(address: Ipv4Addr) -> Class {
    use Class::{Never, Private, Public};
    match address.octets() {
        [127, ..] => Private("a loopback address"),
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Private("a private address"),
        [100, 64..=127, ..] => Private("a carrier-grade NAT address"),
        [198, 18..=19, ..] => Private("a benchmarking address"),
        // Cloud machines are given their credentials from 169.254.169.254.
        [169, 254, ..] => Never("a link-local address"),
        [0, ..] => Never("an unspecified address"),
        [192, 0, 0, _] => Never("a protocol assignment address"),
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Never("a documentation address"),
        [192, 88, 99, _] => Never("a 6to4 relay address"),
        [224..=239, ..] => Never("a multicast address"),
        [255, 255, 255, 255] => Never("a broadcast address"),
        [240..=255, ..] => Never("a reserved address"),
        _ => Public,
    }
}

fn classify_v6(address: Ipv6Addr) -> Class {
    use Class::{Never, Private, Public};
    let [a, b, c, d, e, f, g, h] = address.segments();
    let low = v4(g, h);
    match [a, b, c, d, e, f] {
        [0, 0, 0, 0, 0, 0] if (g, h) == (0, 0) => Never("an unspecified address"),
        [0, 0, 0, 0, 0, 0] if (g, h) == (0, 1) => Private("a loopback address"),
        // IPv4-compatible, IPv4-mapped, IPv4-translated, NAT64.
        [0, 0, 0, 0, 0, 0] | [0, 0, 0, 0, 0, 0xffff] | [0, 0, 0, 0, 0xffff, 0] | [0x64, 0xff9b, 0, 0, 0, 0] => {
            classify_v4(low)
        }
        [0x64, 0xff9b, 1, ..] => Private("a local NAT64 address"),
        [0xfc00..=0xfdff, ..] if address == AWS_METADATA => Never("a cloud metadata address"),
        [0xfc00..=0xfdff, ..] => Private("a unique local address"),
        [0xfe80..=0xfebf, ..] => Never("a link-local address"),
        [0xfec0..=0xfeff, ..] => Private("a site-local address"),
        [0xff00..=0xffff, ..] => Never("a multicast address"),
        // Teredo hides its IPv4 address by inverting it; no media server lives behind it.
        [0x2001, 0, ..] => Never("a Teredo address"),
        [0x2001, 0x0db8, ..] | [0x3fff, 0..=0x0fff, ..] => Never("a documentation address"),
        [0x2001, 0x0002, 0, ..] => Private("a benchmarking address"),
        [0x2001, 0..=0x01ff, ..] => Never("a protocol assignment address"),
        [0x2002, ..] => classify_v4(v4(b, c)),
        // ISATAP: the interface half ends in an IPv4 address, under any prefix.
        [0x2000..=0x3fff, _, _, _, 0 | 0x0200, 0x5efe] if low != Ipv4Addr::UNSPECIFIED => classify_v4(low),
        [0x2000..=0x3fff, ..] => Public,
        _ => Never("a reserved address"),
    }
}

/// Where one cloud serves instance credentials over IPv6.
const AWS_METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254);

fn v4(high: u16, low: u16) -> Ipv4Addr {
    let [a, b] = high.to_be_bytes();
    let [c, d] = low.to_be_bytes();
    Ipv4Addr::new(a, b, c, d)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipnet::IpNet;
    use proptest::prelude::*;

    fn class(text: &str) -> Class {
        classify(text.parse().unwrap())
    }

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|net| net.parse().unwrap()).collect()
    }

    /// The same registries written a second time, as prefixes, so that a slip in a pattern above shows.
    const CLOSED: &[&str] = &[
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    ];

    fn closed_v4(address: Ipv4Addr) -> bool {
        nets(CLOSED).iter().any(|net| net.contains(&IpAddr::V4(address)))
    }

    #[test]
    fn names_what_it_refuses() {
        assert_eq!(class("127.0.0.1"), Class::Private("a loopback address"));
        assert_eq!(class("::1"), Class::Private("a loopback address"));
        assert_eq!(class("::ffff:127.0.0.1"), Class::Private("a loopback address"));
        assert_eq!(class("::127.0.0.1"), Class::Private("a loopback address"));
        assert_eq!(class("100.64.0.1"), Class::Private("a carrier-grade NAT address"));
        assert_eq!(class("fc00::1"), Class::Private("a unique local address"));
        assert_eq!(class("169.254.169.254"), Class::Never("a link-local address"));
        assert_eq!(class("fe80::1"), Class::Never("a link-local address"));
        assert_eq!(class("fd00:ec2::254"), Class::Never("a cloud metadata address"));
        assert_eq!(class("::"), Class::Never("an unspecified address"));
        assert_eq!(class("224.0.0.1"), Class::Never("a multicast address"));
        assert_eq!(class("ff02::1"), Class::Never("a multicast address"));
        assert_eq!(class("255.255.255.255"), Class::Never("a broadcast address"));
    }

    #[test]
    fn public_addresses_pass() {
        for text in ["1.1.1.1", "93.184.216.34", "100.63.255.255", "172.32.0.1", "2606:4700::1111", "64:ff9b::1.1.1.1"]
        {
            assert_eq!(class(text), Class::Public, "{text}");
        }
    }

    #[test]
    fn private_needs_the_flag_and_metadata_has_none() {
        assert!(!class("10.0.0.1").allowed(false));
        assert!(class("10.0.0.1").allowed(true));
        assert!(!class("169.254.169.254").allowed(true));
        assert!(!class("0.0.0.0").allowed(true));
    }

    proptest! {
        #[test]
        fn v4_agrees_with_the_registry(bits: u32) {
            let address = Ipv4Addr::from(bits);
            prop_assert_eq!(classify_v4(address) != Class::Public, closed_v4(address));
        }

        #[test]
        fn v4_edges_of_each_block_agree(index in 0..CLOSED.len(), step in -2i64..=2, end: bool) {
            let IpNet::V4(net) = nets(CLOSED)[index] else { unreachable!("the list is IPv4") };
            let edge = u32::from(if end { net.broadcast() } else { net.network() });
            let address = Ipv4Addr::from(edge.wrapping_add(step as u32));
            prop_assert_eq!(classify_v4(address) != Class::Public, closed_v4(address));
        }

        /// However an IPv4 address is wrapped, the wrapping never opens what the bare address closes.
        #[test]
        fn wrapping_opens_nothing(bits: u32, index in 0..CLOSED.len(), pick: bool) {
            let bits = if pick {
                let IpNet::V4(net) = nets(CLOSED)[index] else { unreachable!("the list is IPv4") };
                u32::from(net.network()) | (bits & u32::from(net.hostmask()))
            } else {
                bits
            };
            let bare = Ipv4Addr::from(bits);
            let (high, low) = ((bits >> 16) as u16, bits as u16);
            let wrapped = [
                bare.to_ipv6_mapped(),
                Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low),
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
                Ipv6Addr::new(0x2a00, 1, 2, 3, 0, 0x5efe, high, low),
            ];
            for address in wrapped {
                if closed_v4(bare) && bits != 0 {
                    prop_assert_ne!(classify_v6(address), Class::Public, "{}", address);
                }
            }
        }

        #[test]
        fn nothing_outside_global_unicast_is_public(bits: u128) {
            let address = Ipv6Addr::from(bits);
            let global = address.segments()[0] & 0xe000 == 0x2000;
            let carries_v4 = bits >> 48 == 0 || bits >> 32 == 0x64_ff9b << 64 || bits >> 32 == 0xffff_0000;
            if !global && !carries_v4 {
                prop_assert_ne!(classify_v6(address), Class::Public);
            }
        }
    }
}
