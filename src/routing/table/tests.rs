use super::*;

/// One line per step: `claim PREFIX N`, `unclaim PREFIX N`, `fix PREFIX N`, `unfix PREFIX`, `learn PREFIX N RELATION
/// HOPS`, `unlearn PREFIX N`; `.` is the empty prefix.
fn step(line: &str) -> Step {
    let words: Vec<&str> = line.split_whitespace().collect();
    let prefix: Arc<str> = if words[1] == "." { "".into() } else { words[1].into() };
    let account = || AccountId::new(words[2].parse().unwrap());
    match words[0] {
        "claim" => Step::Claim {
            prefix,
            account: account(),
        },
        "unclaim" => Step::Unclaim {
            prefix,
            account: account(),
        },
        "fix" => Step::Fix {
            prefix,
            next_hop: account(),
        },
        "unfix" => Step::Unfix { prefix },
        "learn" => Step::Learn {
            prefix,
            account: account(),
            relation: RoutingRelation::parse(words[3]).unwrap(),
            hops: words[4].parse().unwrap(),
        },
        "unlearn" => Step::Unlearn {
            prefix,
            account: account(),
        },
        other => panic!("no such step: {other}"),
    }
}

fn show(changes: &[RouteChange]) -> String {
    let show = |change: &RouteChange| match change.next_hop {
        Some(id) if change.same_next_hop => format!("{}~{id}", change.prefix),
        Some(id) => format!("{}={id}", change.prefix),
        None => format!("{}=-", change.prefix),
    };
    changes.iter().map(show).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_choice_for_one_prefix() {
    let mut table = Table::new();
    for (line, changes, prefixes) in [
        ("claim g.a 5", "g.a=5", 1),
        ("claim g.a 5", "", 1),
        ("claim g.a 7", "", 1),        // the older account keeps the route
        ("claim g.a 3", "g.a=3", 1),   // an even older one takes it
        ("unclaim g.a 9", "", 1),      // never had one
        ("unclaim g.a 3", "g.a=5", 1), // back to the next oldest
        ("fix g.a 8", "g.a=8", 1),     // the operator wins
        ("claim g.a 1", "", 1),
        ("fix g.a 9", "g.a=9", 1),
        ("unfix g.a", "g.a=1", 1),
        ("unfix g.a", "", 1),
        ("unclaim g.a 1", "g.a=5", 1),
        ("unclaim g.a 5", "g.a=7", 1),
        ("unclaim g.a 7", "g.a=-", 0),
        ("unclaim g.a 7", "", 0),
        ("unfix g.b", "", 0),
        ("claim . 2", "=2", 1),
        ("fix . 4", "=4", 1),
        ("unfix .", "=2", 1),
    ] {
        assert_eq!(show(&table.apply([step(line)])), changes, "{line}");
        assert_eq!(table.len(), prefixes, "{line}");
    }
}

#[test]
fn only_what_differs_in_the_end_is_a_change() {
    let mut table = Table::new();
    table.apply(["claim g.a 1", "fix g.b 2", "fix g.c 3"].map(step));
    // Replacing the whole fixed table: g.b stays as it was, g.c goes, g.d comes.
    let changes = table.apply(
        [
            "unfix g.b",
            "unfix g.c",
            "fix g.b 2",
            "fix g.d 2",
            "unclaim g.a 1",
            "claim g.a 1",
        ]
        .map(step),
    );
    assert_eq!(show(&changes), "g.c=- g.d=2");
    assert_eq!(table.fixed_count(), 2);
    assert_eq!(
        table
            .fixed_routes()
            .map(|(prefix, _)| prefix.to_string())
            .collect::<Vec<_>>(),
        ["g.b", "g.d"]
    );
    assert_eq!(table.winners().count(), 3);
}

#[test]
fn winners_are_read_in_parts() {
    let mut table = Table::new();
    table.apply(
        [
            "claim g.b 1",
            "claim . 2",
            "fix g 3",
            "claim g.a.x 4",
            "claim g.c 5",
            "fix g.c 6",
        ]
        .map(step),
    );
    table.shrink();
    let read = |after| {
        let routes = table.winners_after(after);
        let shown: Vec<String> = routes.map(|(prefix, id)| format!("{prefix}={id}")).collect();
        shown.join(" ")
    };
    for (after, routes) in [
        (None, "=2 g=3 g.a.x=4 g.b=1 g.c=6"),
        (Some(""), "g=3 g.a.x=4 g.b=1 g.c=6"),
        (Some("g"), "g.a.x=4 g.b=1 g.c=6"),
        (Some("g.a"), "g.a.x=4 g.b=1 g.c=6"), // it need not be there
        (Some("g.a.x"), "g.b=1 g.c=6"),
        (Some("g.c"), ""),
        (Some("h"), ""),
    ] {
        assert_eq!(read(after), routes, "after {after:?}");
    }
}

#[test]
fn claims_are_listed_oldest_first() {
    let mut table = Table::new();
    table.apply(["claim g.a 9", "claim g.a 2", "claim g.a 5"].map(step));
    assert_eq!(table.claims("g.a").map(AccountId::get).collect::<Vec<_>>(), [2, 5, 9]);
    assert_eq!(table.claims("g.b").count(), 0);
}

/// Every way for a prefix, best first: what it is and its account, with `!` if the link is down.
fn ways(table: &Table, prefix: &str) -> String {
    let show = |candidate: Candidate| {
        let origin = match candidate.origin {
            Origin::Fixed => "fixed".to_owned(),
            Origin::Own => "own".to_owned(),
            Origin::Learned { relation, hops } => format!("{}/{hops}", relation.as_str()),
        };
        let down = if candidate.is_up { "" } else { "!" };
        format!("{origin}:{}{down}", candidate.account)
    };
    let candidates = table.candidates(prefix).into_iter();
    candidates.map(show).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_choice_among_learned_routes() {
    let mut table = Table::new();
    for (line, changes, expected) in [
        ("learn g.a 9 Parent 1", "g.a=9", "Parent/1:9"),
        ("learn g.a 8 Peer 5", "g.a=8", "Peer/5:8 Parent/1:9"),
        ("learn g.a 7 Peer 5", "g.a=7", "Peer/5:7 Peer/5:8 Parent/1:9"), // the older account
        ("learn g.a 8 Peer 4", "g.a=8", "Peer/4:8 Peer/5:7 Parent/1:9"), // fewer hops
        ("learn g.a 9 Child 30", "g.a=9", "Child/30:9 Peer/4:8 Peer/5:7"), // it is a child now
        ("learn g.a 9 Child 30", "g.a~9", "Child/30:9 Peer/4:8 Peer/5:7"), // told again
        ("learn g.a 9 Child 2", "g.a~9", "Child/2:9 Peer/4:8 Peer/5:7"),
        ("learn g.a 7 Peer 6", "", "Child/2:9 Peer/4:8 Peer/6:7"),
        ("claim g.a 8", "g.a=8", "own:8 Child/2:9 Peer/4:8 Peer/6:7"),
        ("fix g.a 8", "g.a~8", "fixed:8 own:8 Child/2:9 Peer/4:8 Peer/6:7"),
        ("fix g.a 6", "g.a=6", "fixed:6 own:8 Child/2:9 Peer/4:8 Peer/6:7"),
        ("unlearn g.a 9", "", "fixed:6 own:8 Peer/4:8 Peer/6:7"),
        ("unfix g.a", "g.a=8", "own:8 Peer/4:8 Peer/6:7"),
        ("unclaim g.a 8", "g.a~8", "Peer/4:8 Peer/6:7"),
        ("unlearn g.a 5", "", "Peer/4:8 Peer/6:7"), // never told it
        ("unlearn g.a 8", "g.a=7", "Peer/6:7"),
        ("unlearn g.a 7", "g.a=-", ""),
    ] {
        assert_eq!(show(&table.apply([step(line)])), changes, "{line}");
        assert_eq!(ways(&table, "g.a"), expected, "{line}");
    }
    assert!(table.is_empty() && table.by_account.is_empty());
}

#[test]
fn whose_link_is_down_stands_behind() {
    let mut table = Table::new();
    table.apply(
        [
            "fix g.a 1",
            "learn g.a 2 Peer 1",
            "learn g.a 3 Peer 2",
            "claim g.me 4",
            "learn g.me 3 Child 1",
            "learn g.b 3 Parent 1",
        ]
        .map(step),
    );
    let id = AccountId::new;
    for (account, up, changes, expected) in [
        (1, true, "", "fixed:1 Peer/1:2 Peer/2:3"), // it was
        (1, false, "g.a=2", "Peer/1:2 Peer/2:3 fixed:1!"),
        (1, false, "", "Peer/1:2 Peer/2:3 fixed:1!"),
        (2, false, "g.a=3", "Peer/2:3 fixed:1! Peer/1:2!"),
        // With nobody left the best stays in force. Where there is no other way it is only told that the link is down.
        (3, false, "g.a=1 g.b~3", "fixed:1! Peer/1:2! Peer/2:3!"),
        (2, true, "g.a=2", "Peer/1:2 fixed:1! Peer/2:3!"),
        (1, true, "g.a=1", "fixed:1 Peer/1:2 Peer/2:3!"),
        (3, true, "g.b~3", "fixed:1 Peer/1:2 Peer/2:3"),
        (9, false, "", "fixed:1 Peer/1:2 Peer/2:3"), // leads nowhere
    ] {
        let said = table.set_link(id(account), up, []);
        assert_eq!(show(&said), changes, "{account} {up}");
        assert_eq!(ways(&table, "g.a"), expected, "{account} {up}");
    }
    // An address of an account's own may fail over to who tells it.
    let said = table.set_link(id(4), false, ["g.me".into(), "g.not-there".into()]);
    assert_eq!(show(&said), "g.me=3");
    assert_eq!(ways(&table, "g.me"), "Child/1:3 own:4!");
    // A route that comes while its link is down stands where it belongs.
    assert_eq!(show(&table.apply([step("fix g.b 4")])), "");
    assert_eq!(ways(&table, "g.b"), "Parent/1:3 fixed:4!");
}

#[test]
fn an_account_takes_what_was_learned_from_it_along() {
    let mut table = Table::new();
    table.apply(
        [
            "learn g.a 1 Peer 1",
            "learn g.a 2 Peer 2",
            "learn g.b 1 Peer 1",
            "fix g.c 1",
            "learn g.c 1 Peer 1",
            "learn g.d 2 Peer 1",
        ]
        .map(step),
    );
    let id = AccountId::new;
    let learned = |table: &Table, account| {
        let prefixes = table.learned_from(id(account)).map(|prefix| &**prefix);
        prefixes.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(learned(&table, 1), "g.a g.b g.c");
    assert_eq!(table.fixed_routes_to(id(1)), ["g.c".into()]);
    // As a deletion does it.
    table.set_link(id(1), false, []);
    assert_eq!(show(&table.apply([step("unfix g.c")])), "g.c~1");
    assert_eq!(show(&table.forget_account(id(1))), "g.b=- g.c=-");
    assert_eq!(learned(&table, 1), "");
    assert_eq!(show(&table.forget_account(id(1))), "");
    assert_eq!(table.len(), 2);
    // Its link is forgotten as well.
    assert_eq!(show(&table.apply([step("fix g.a 1")])), "g.a=1");
    // What is fixed outlives it if nobody took it back, and does not count as down any more.
    table.set_link(id(1), false, []);
    assert_eq!(show(&table.forget_account(id(1))), "g.a=1");
}

/// All candidates in one list, sorted when somebody asks: slow, and plainly right.
#[derive(Default)]
struct Oracle {
    candidates: Vec<(Arc<str>, AccountId, Origin)>,
    down: Vec<AccountId>,
}

impl Oracle {
    fn take(&mut self, step: &Step) {
        let same = |origin: Origin, other: Origin| std::mem::discriminant(&origin) == std::mem::discriminant(&other);
        let anyhow = Origin::Learned {
            relation: RoutingRelation::Peer,
            hops: 0,
        };
        let (account, origin, is_new) = match *step {
            Step::Claim { account, .. } => (Some(account), Origin::Own, true),
            Step::Unclaim { account, .. } => (Some(account), Origin::Own, false),
            Step::Fix { .. } | Step::Unfix { .. } => (None, Origin::Fixed, false),
            Step::Learn { account, .. } | Step::Unlearn { account, .. } => (Some(account), anyhow, false),
        };
        let prefix = Arc::clone(step.prefix());
        self.candidates.retain(|(other, who, from)| {
            *other != prefix || !same(*from, origin) || account.is_some_and(|account| account != *who)
        });
        match *step {
            Step::Fix { next_hop, .. } => self.candidates.push((prefix, next_hop, Origin::Fixed)),
            Step::Learn {
                account,
                relation,
                hops,
                ..
            } => self
                .candidates
                .push((prefix, account, Origin::Learned { relation, hops })),
            Step::Claim { account, .. } if is_new => self.candidates.push((prefix, account, origin)),
            _ => {}
        }
    }

    fn candidates(&self, prefix: &str) -> Vec<Candidate> {
        let here = self.candidates.iter().filter(|(other, ..)| **other == *prefix);
        let mut all: Vec<Candidate> = here
            .map(|&(_, account, origin)| Candidate {
                account,
                origin,
                is_up: !self.down.contains(&account),
            })
            .collect();
        let relations = ["Child", "Peer", "Parent"];
        all.sort_by_key(|candidate| {
            let preference = match candidate.origin {
                Origin::Fixed => (0, None, 0),
                Origin::Own => (1, None, 0),
                Origin::Learned { relation, hops } => {
                    (2, relations.iter().position(|name| *name == relation.as_str()), hops)
                }
            };
            (!candidate.is_up, preference, candidate.account)
        });
        all
    }
}

#[test]
fn the_table_is_as_a_list_that_is_sorted_when_somebody_asks() {
    const PREFIXES: [&str; 6] = ["", "g", "g.a", "g.a.b", "g.aa", "g.b"];
    const ACCOUNTS: u64 = 7;
    for seed in 1..=40_u64 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut below = |limit: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % limit
        };
        let (mut table, mut oracle) = (Table::new(), Oracle::default());
        // Who sees only the changes must agree with the table after each of them.
        let mut replica: BTreeMap<Arc<str>, AccountId> = BTreeMap::new();
        for round in 0..400 {
            let at = format!("seed {seed}, round {round}");
            let before: Vec<_> = PREFIXES.map(|prefix| oracle.candidates(prefix).first().copied()).into();
            let account = AccountId::new(below(ACCOUNTS) as u32);
            let mut told = Vec::new();
            let changes = match below(8) {
                0 => {
                    let up = below(2) == 0;
                    oracle.down.retain(|other| *other != account);
                    if !up {
                        oracle.down.push(account);
                    }
                    let claims = oracle.candidates.iter();
                    let claims = claims.filter(|(_, who, origin)| (*who, *origin) == (account, Origin::Own));
                    let claims: Vec<_> = claims.map(|(prefix, ..)| Arc::clone(prefix)).collect();
                    table.set_link(account, up, claims)
                }
                1 if below(4) == 0 => {
                    let is_kept = |(_, who, origin): &(Arc<str>, AccountId, Origin)| {
                        *who != account || matches!(origin, Origin::Fixed)
                    };
                    let claims = oracle.candidates.iter();
                    let claims = claims.filter(|(_, who, origin)| (*who, *origin) == (account, Origin::Own));
                    let unclaims: Vec<_> = claims
                        .map(|(prefix, ..)| Step::Unclaim {
                            prefix: Arc::clone(prefix),
                            account,
                        })
                        .collect();
                    oracle.candidates.retain(is_kept);
                    oracle.down.retain(|other| *other != account);
                    let mut changes = table.apply(unclaims);
                    changes.extend(table.forget_account(account));
                    changes
                }
                _ => {
                    let steps: Vec<Step> = (0..below(5))
                        .map(|_| {
                            let prefix: Arc<str> = PREFIXES[below(PREFIXES.len() as u64) as usize].into();
                            let account = AccountId::new(below(ACCOUNTS) as u32);
                            match below(8) {
                                0 => Step::Claim { prefix, account },
                                1 => Step::Unclaim { prefix, account },
                                2 => Step::Fix {
                                    prefix,
                                    next_hop: account,
                                },
                                3 => Step::Unfix { prefix },
                                4 => Step::Unlearn { prefix, account },
                                _ => Step::Learn {
                                    prefix,
                                    account,
                                    relation: RoutingRelation::ALL[1 + below(3) as usize],
                                    hops: below(3) as u8,
                                },
                            }
                        })
                        .collect();
                    for step in &steps {
                        oracle.take(step);
                        if let Step::Learn { prefix, account, .. } = step {
                            told.push((Arc::clone(prefix), *account));
                        }
                    }
                    table.apply(steps)
                }
            };
            for change in &changes {
                let known = replica.get(&change.prefix).copied();
                assert_eq!(change.same_next_hop, known == change.next_hop, "{at}: {change:?}");
                match change.next_hop {
                    Some(next_hop) => replica.insert(Arc::clone(&change.prefix), next_hop),
                    None => replica.remove(&change.prefix),
                };
            }
            for (prefix, before) in PREFIXES.into_iter().zip(before) {
                let expected = oracle.candidates(prefix);
                assert_eq!(table.candidates(prefix), expected, "{at}: {prefix:?}");
                let in_force = expected.first().copied();
                assert_eq!(table.in_force(prefix), in_force, "{at}: {prefix:?}");
                // Whoever tells neighbours hears of everything that they have to hear.
                let is_named = changes.iter().any(|change| *change.prefix == *prefix);
                let is_told_again = in_force.is_some_and(|candidate| {
                    told.iter()
                        .any(|(other, who)| **other == *prefix && candidate.is_learned_from(*who))
                });
                assert!(is_named || (before == in_force && !is_told_again), "{at}: {prefix:?}");
            }
            let winners: BTreeMap<_, _> = table.winners().map(|(prefix, id)| (Arc::clone(prefix), id)).collect();
            assert_eq!(winners, replica, "{at}");
            assert_eq!(table.len(), replica.len(), "{at}");
            assert_eq!(table.fixed_count(), table.fixed_routes().count(), "{at}");
            for account in (0..ACCOUNTS as u32).map(AccountId::new) {
                let of = |is_wanted: fn(&Origin) -> bool| {
                    let all = oracle.candidates.iter();
                    let wanted = all.filter(|(_, who, origin)| *who == account && is_wanted(origin));
                    let prefixes: BTreeSet<_> = wanted.map(|(prefix, ..)| Arc::clone(prefix)).collect();
                    prefixes.into_iter().collect::<Vec<_>>()
                };
                let fixed = of(|origin| *origin == Origin::Fixed);
                assert_eq!(table.fixed_routes_to(account), fixed, "{at}");
                let learned = of(|origin| matches!(origin, Origin::Learned { .. }));
                assert!(table.learned_from(account).eq(&learned), "{at}");
            }
        }
    }
}
