//! Which peer leads where: every known route and the choice among them ([`table`]), the table that packets are looked
//! up in ([`forwarding`]), and the exchange of routes with neighbours ([`ccp`]).

pub mod ccp;
pub mod forwarding;
pub mod table;
