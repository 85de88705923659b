//! Fuzz target: mmdb databases.

use std::borrow::Cow;
use std::net::IpAddr;

use maxminddb::PathElement::Key;

use crate::database::{Database, Schema};
use crate::write::{Writer, map};
use crate::{Country, Source};

/// A database that passes the check has a readable record for every address, with the country that a decoder
/// without the schemas finds. The bytes are a database, and they make one: the first five choose a place, the
/// bits to flip there, the length of the country's name and the schema; the rest is that name.
pub fn mmdb(data: &[u8]) {
    check(data);
    let Some((&[low, high, flip, length, nested], name)) = data.split_first_chunk() else { return };
    let name = String::from_utf8_lossy(&name[..usize::from(length).min(name.len())]).into_owned();
    let coded = |name: &str| match nested & 1 {
        0 => map([("country_code", name.into())]),
        _ => map([("country", map([("iso_code", name.into())]))]),
    };
    let networks = [("1.2.3.0", 24, &*name), ("2001:db8::", 32, "CH")];
    let mut writer = Writer::new("fuzz");
    for (network, prefix, name) in networks {
        writer.insert(network.parse().expect("an address"), prefix, &coded(name));
    }
    let mut file = writer.finish();
    let place = usize::from(u16::from_le_bytes([low, high])) % file.len();
    file[place] ^= flip;
    check(&file);
}

fn check(data: &[u8]) {
    let Ok(database) = Database::checked(Cow::Owned(data.to_vec()), &Source::BuiltIn) else {
        return;
    };
    let Ok(reader) = maxminddb::Reader::from_source(data) else { panic!("the crate reads it") };
    for address in
        ["0.0.0.0", "1.2.3.4", "192.0.2.1", "255.255.255.255", "::", "2001:db8::1", "ffff::"]
    {
        let address: IpAddr = address.parse().expect("an address");
        let record = database.record(address);
        database.offset(address);
        if address.is_ipv6() && reader.metadata().ip_version == 4 {
            assert_eq!(record.country, None);
            continue;
        }
        let found = reader.lookup(address).expect("the tree is whole");
        let code = match database.schema {
            Schema::Flat => found.decode_path::<&str>(&[Key("country_code")]),
            Schema::GeoIp2 => found.decode_path::<&str>(&[Key("country"), Key("iso_code")]),
        };
        let code = code.ok().flatten().and_then(|code| code.as_bytes().try_into().ok());
        assert_eq!(record.country, code.and_then(Country::from_code), "{address}");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    #[test]
    fn the_target_accepts_its_corpus() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/mmdb");
        let inputs: Vec<_> = fs::read_dir(corpus).expect("the corpus can be read").collect();
        assert!((3..=300).contains(&inputs.len()), "{} inputs", inputs.len());
        for input in inputs {
            let input = input.expect("an entry").path();
            // Shown if the test fails.
            println!("{}", input.display());
            super::mmdb(&fs::read(input).expect("an input"));
        }
    }
}
