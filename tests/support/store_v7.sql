-- A store as schema version 7 left it: two runs, one of them partly folded, a token, a command.
CREATE TABLE alert_lock (id integer primary key, n bigint not null);
insert into alert_lock VALUES(1,0);
CREATE TABLE alert_outbox (
  run_id integer not null, id bigint not null, primary key (run_id, id)) without rowid;
insert into alert_outbox VALUES(1,1);
insert into alert_outbox VALUES(1,2);
insert into alert_outbox VALUES(2,1);
insert into alert_outbox VALUES(2,2);
CREATE TABLE alerting (
  version integer primary key, body text not null, author text not null, at real not null);
CREATE TABLE annotation (
  run_id integer not null, id integer not null, step bigint not null, quiet_steps bigint not null,
  text text not null, author text not null, at real not null,
  primary key (run_id, id)) without rowid;
CREATE TABLE attempt (
  run_id integer not null, attempt bigint not null, first_step bigint not null,
  started_at real not null, primary key (run_id, attempt)) without rowid;
insert into attempt VALUES(1,0,0,1763800000.0);
CREATE TABLE audit (
  id integer primary key autoincrement, at real not null, author text not null, action text not null,
  subject text not null, detail text not null);
insert into audit VALUES(1,1763800000.0,'ann','project_policy_changed','p','version 1');
insert into audit VALUES(2,1763800000.0,'ann','token_created','grafana','scopes read; project any');
insert into audit VALUES(3,1763800000.0,'ann','command_sent','old','checkpoint: before the move');
CREATE TABLE checkpoint (
  run_id integer primary key, upto bigint not null, settings text not null,
  annotations integer not null, v blob not null);
insert into checkpoint VALUES(1,2,'',0,X'7B2276657273696F6E223A332C2273746570223A382C22676170223A312C22747261696E6564223A392C226C6172676573745F6C72223A302E302C226C6F7373223A5B302E333134333239383038373834383535372C302E343033313234303534333733343933332C395D2C226772616469656E74223A5B302E302C302E302C305D2C2272697365223A5B302E333134333239383038373834383535372C312E302C395D2C22616E6E6F7461746564223A5B5D2C22626567756E223A302C226F6E736574223A6E756C6C2C226F6E7365745F6E6577657374223A6E756C6C2C22666972696E67223A7B226E6F6E66696E697465223A5B302C313030303030303030305D2C22627265616368223A5B342C305D2C227369676D615F6A756D70223A5B302C313030303030303030305D2C227369676D615F67726F777468223A5B302C313030303030303030305D2C227369676D615F76735F696E6974223A5B302C313030303030303030305D2C22636F686572656E745F67726F777468223A5B302C313030303030303030305D2C226C6F73735F646976657267656E6365223A5B302C313030303030303030305D2C226C6F73735F7472656E64223A5B302C313030303030303030305D7D2C226C6179657273223A322C22636F6C756D6E73223A5B227374617274222C226E6577657374222C226D65616E222C226C6F6E675F6D65616E222C22666C6F6F72225D7D0A0A0151586820F72F8D2B9D225CB35497550CDDC0550CDDC01872313F1872B13F4F65CBBFD90F79BF4F65CBBFD90F79BF0000000000000000');
CREATE TABLE command (
  run_id integer not null, id bigint not null, action text not null, reason text not null,
  author text not null, at real not null, seen_at real, primary key (run_id, id)) without rowid;
insert into command VALUES(1,1,'checkpoint','before the move','ann',1763800000.0,NULL);
CREATE TABLE damage (
  run_id integer not null, place text not null, at real not null, detail text not null,
  primary key (run_id, place)) without rowid;
CREATE TABLE deleted_run (run_id integer primary key);
CREATE TABLE delivery (
  run_id integer not null, incident bigint not null, receiver text not null, next_at real,
  told text not null default 'nothing', told_at real,
  told_severity text not null default 'info',
  failures bigint not null default 0, failing_since real, error text not null default '',
  silenced integer not null default 0, claimed_until real,
  primary key (incident, receiver)) without rowid;
CREATE TABLE event (
  run_id integer not null, id bigint not null, at real not null, step bigint not null,
  rule text not null, severity text not null, layer text, layers integer not null,
  value real, limit_value real, message text not null, rules_version integer, primary key (run_id, id)) without rowid;
insert into event VALUES(1,1,1763800000.0,0,'run_started','info',NULL,0,NULL,NULL,'run old started',NULL);
insert into event VALUES(1,2,1763800000.0,5,'breach','warning','fc2.weight',1,2.5,2.0,'fc2.weight: sigma 2.50 exceeds its threshold 2.00',0);
insert into event VALUES(2,1,1763800000.0,0,'run_started','info',NULL,0,NULL,NULL,'run gone started',NULL);
insert into event VALUES(2,2,1763800001.0,0,'run_finished','warning',NULL,0,NULL,NULL,'run gone failed at step 0',NULL);
CREATE TABLE event_count (
  run_id integer not null, rule text not null, severity text not null, n bigint not null,
  primary key (run_id, rule, severity)) without rowid;
insert into event_count VALUES(1,'breach','warning',1);
insert into event_count VALUES(1,'run_started','info',1);
insert into event_count VALUES(2,'run_finished','warning',1);
insert into event_count VALUES(2,'run_started','info',1);
CREATE TABLE incident (
  id integer primary key autoincrement, run_id integer not null, state text not null, severity text not null,
  body text not null, opened_at real not null, updated_at real not null,
  revision bigint not null, omitted bigint not null, resolved_at real, acknowledged_at real,
  acknowledged_by text not null default '');
CREATE TABLE latest (
  run_id integer not null, table_id integer not null, metrics text not null,
  steps blob not null, v blob not null, primary key (run_id, table_id));
insert into latest VALUES(1,0,'["sigma", "threshold"]',X'0800000000000000080000000000000000000000000000000000000000000000',X'00000040000080400000004000000040');
CREATE TABLE layer (
  run_id integer not null, layer integer not null, name text not null, kind text not null,
  shape text not null, primary key (run_id, layer)) without rowid;
insert into layer VALUES(1,0,'fc1.weight','linear','[4, 2]');
insert into layer VALUES(1,1,'fc2.weight','linear','[4, 2]');
CREATE TABLE layer_table (
  run_id integer not null, table_id integer not null, hash text not null, layers blob not null,
  body blob not null, primary key (run_id, table_id));
insert into layer_table VALUES(1,0,'b617071e99df0ca7cb9decabb7742d43',X'0000000001000000',X'7B226C6179657273223A5B7B226B696E64223A226C696E656172222C226E616D65223A226663312E776569676874222C227368617065223A5B342C325D7D2C7B226B696E64223A226C696E656172222C226E616D65223A226663322E776569676874222C227368617065223A5B342C325D7D5D7D');
CREATE TABLE layout (
  run_id integer not null, layout integer not null, table_id integer not null,
  metrics text not null, scalars text not null, primary key (run_id, layout)) without rowid;
insert into layout VALUES(1,0,0,'["sigma", "threshold"]','["loss"]');
CREATE TABLE metric (
  run_id integer not null, metric integer not null, kind text not null, name text not null,
  primary key (run_id, metric)) without rowid;
insert into metric VALUES(1,0,'layer','sigma');
insert into metric VALUES(1,1,'layer','threshold');
insert into metric VALUES(1,2,'run','loss');
CREATE TABLE project_policy (
  project text not null, version integer not null, body text not null, author text not null,
  at real not null, primary key (project, version)) without rowid;
insert into project_policy VALUES('p',1,'{"entries": []}','ann',1763800000.0);
CREATE TABLE project_rules (
  project text not null, version integer not null, body text not null, author text not null,
  at real not null, primary key (project, version)) without rowid;
CREATE TABLE run (
  run_id integer primary key, run text not null, name text not null, project text not null,
  state text not null, created_at real not null, updated_at real not null,
  last_step bigint, layers integer not null default 0, breaches bigint not null default 0,
  rescales bigint not null default 0, guard_vetoes bigint not null default 0,
  dropped_values bigint not null default 0, worst_ratio real, worst_layer text,
  nonfinite_layers integer not null default 0, overhead real,
  attempt bigint not null default 0, version bigint not null default 1,
  next_event bigint not null default 1, next_tail bigint not null default 1,
  interval_shift integer, fold_epoch bigint not null default 0, loss real, nonfinite_loss integer not null default 0, archived integer not null default 0, acknowledged_at real, acknowledged_by text not null default '', pulse blob);
insert into run VALUES(1,'old','the old one','p','active',1763800000.0,1763800000.0,8,2,4,0,0,0,2.0,'fc2.weight',0,NULL,0,4,3,3,0,1,1.11111111938953399658e-01,0,0,NULL,'',X'7B2276657273696F6E223A332C2273746570223A382C22676170223A312C22747261696E6564223A392C226C6172676573745F6C72223A302E302C226C6F7373223A5B302E333134333239383038373834383535372C302E343033313234303534333733343933332C395D2C226772616469656E74223A5B302E302C302E302C305D2C2272697365223A5B302E333134333239383038373834383535372C312E302C395D2C22616E6E6F7461746564223A5B5D2C22626567756E223A302C226F6E736574223A6E756C6C2C226F6E7365745F6E6577657374223A6E756C6C2C22666972696E67223A7B226E6F6E66696E697465223A5B302C313030303030303030305D2C22627265616368223A5B342C305D2C227369676D615F6A756D70223A5B302C313030303030303030305D2C227369676D615F67726F777468223A5B302C313030303030303030305D2C227369676D615F76735F696E6974223A5B302C313030303030303030305D2C22636F686572656E745F67726F777468223A5B302C313030303030303030305D2C226C6F73735F646976657267656E6365223A5B302C313030303030303030305D2C226C6F73735F7472656E64223A5B302C313030303030303030305D7D2C226C6179657273223A322C22636F6C756D6E73223A5B227374617274222C226E6577657374222C226D65616E222C226C6F6E675F6D65616E222C22666C6F6F72225D7D');
insert into run VALUES(2,'gone','gone','p','failed',1763800000.0,1763800001.0,NULL,0,0,0,0,0,NULL,NULL,0,NULL,0,4,3,1,NULL,0,NULL,0,0,NULL,'',NULL);
CREATE TABLE run_author (run_id integer primary key, author text not null);
insert into run_author VALUES(1,'client');
insert into run_author VALUES(2,'client');
CREATE TABLE run_config (run_id integer primary key, config text not null, tags text not null, note text not null default '');
insert into run_config VALUES(1,'{"lr": 0.1}','["x"]','');
insert into run_config VALUES(2,'{}','[]','');
CREATE TABLE run_name (run_id integer primary key autoincrement, run text not null unique);
insert into run_name VALUES(1,'old');
insert into run_name VALUES(2,'gone');
CREATE TABLE run_policy (
  run_id integer not null, version integer not null, body text not null, author text not null,
  at real not null, primary key (run_id, version)) without rowid;
insert into run_policy VALUES(1,1,'{"entries": [{"pattern": "*", "threshold": 2.0, "action": "observe"}]}','client',1763800000.0);
CREATE TABLE run_rules (
  run_id integer not null, version integer not null, body text not null, author text not null,
  at real not null, primary key (run_id, version)) without rowid;
CREATE TABLE run_term (
  run_id integer not null, name text not null, value text not null, number real,
  primary key (run_id, name, value)) without rowid;
insert into run_term VALUES(1,'config.lr','0.1',0.1);
insert into run_term VALUES(1,'tag','x',NULL);
CREATE TABLE silence (
  id integer primary key autoincrement, project text not null, run text not null, rule text not null,
  layer text not null, until real not null, comment text not null,
  author text not null, at real not null);
CREATE TABLE tail (
  run_id integer not null, id bigint not null, attempt bigint not null, layout integer not null,
  step0 bigint not null, step1 bigint not null, n integer not null, steps blob,
  received_at real not null, size integer not null, v blob not null, crcs blob,
  primary key (run_id, id));
insert into tail VALUES(1,2,0,0,6,8,3,NULL,1763800000.0,60,X'0000C03F0000E03F000000400000404000006040000080400000004000000040000000400000004000000040000000402549123E0000003E398EE33D',X'FB505FA8');
CREATE TABLE thinned (run_id integer primary key, below bigint not null, whole integer not null);
CREATE TABLE tile (
  run_id integer not null, attempt bigint not null, metric integer not null,
  level integer not null, block integer not null, step0 bigint not null,
  step1 bigint not null, n integer not null, enc integer not null, steps blob, v blob not null, crc bigint,
  primary key (run_id, attempt, metric, level, block, step0));
insert into tile VALUES(1,0,0,0,0,0,5,6,0,NULL,X'000000000000803E0000003F0000403F0000803F0000A03F000000000000003F0000803F0000C03F0000004000002040',6889114);
insert into tile VALUES(1,0,0,1,0,0,1023,32,4,NULL,X'01010102022E0000003300000034000000110000000400000070636F21030006100401053F0000106103000000001000E00100000081000000F01F0000000080B2A274FFAE030070636F21030006100401053F000010610400200000F407E00100000001E0FFFF0B1800FEFFBF81010000A0BF99A274D3BA0E0070636F21030006100401053F0000106103800000000C08E30100000001000000F41700000020BF40D3043D5D0700000400000000780163631858C036B0D63300000A00000D00000000',682363806);
insert into tile VALUES(1,0,1,0,0,0,5,6,1,NULL,X'70636F21030003030401050B0000100101000000004000000000C000',2305607273);
insert into tile VALUES(1,0,1,1,0,0,1023,32,4,NULL,X'01010102022E0000002E0000002E000000110000000400000070636F21030006100401053F0000106103000000001008E00100000081000000F01700000000C0B2A274FFAE030070636F21030006100401053F000010610300200000F007E00100000081E0FFFF0F1800000000C0B2A274FFAE030070636F21030006100401053F0000106103800000000008E00100000001000000001800000000C040D3043D5D0700780163631858C036B0D63300000A00000D00000000',935996222);
insert into tile VALUES(1,0,2,0,0,0,5,6,0,NULL,X'0000803F0000003FABAAAA3E0000803ECDCC4C3EABAA2A3E',1578224605);
insert into tile VALUES(1,0,2,1,0,0,1023,32,4,NULL,X'01010102022600000026000000260000000C0000000400000070636F21030005080401051F0000105102000F0000000880AAAAAA6000ABAA2ABE0DA103070070636F21030005080401051F0000105102000F0000000880FFFF7F6000000080BF0DA103070070636F21030005080401051F000010510200F0EEEE12047800000040001111D1BE0042070E0078016363185800000380000700000000',3586821320);
CREATE TABLE token (
  id text primary key, name text not null unique, digest text not null,
  scopes text not null, project text, author text not null,
  created_at real not null, expires_at real, revoked_at real);
insert into token VALUES('tok1','grafana','abababababababababababababababababababababababababababababababab','read',NULL,'ann',1763800000.0,NULL,NULL);
CREATE TABLE writer (
  run_id integer not null, writer text not null, last_seq bigint not null,
  last_step bigint not null, attempt bigint not null, crcs blob not null,
  primary key (run_id, writer)) without rowid;
insert into writer VALUES(1,'w',1,8,0,X'0000000000000000CEA599C4000000000100000000000000EBB529DF00000000');
CREATE INDEX command_waiting on command (run_id, id) where seen_at is null;
CREATE INDEX delivery_by_run on delivery (run_id);
CREATE INDEX delivery_due on delivery (receiver, next_at) where next_at is not null;
CREATE INDEX event_by_time on event (at, run_id, id);
CREATE INDEX incident_by_run on incident (run_id, id);
CREATE INDEX incident_open on incident (run_id) where state = 'open';
CREATE UNIQUE INDEX layer_by_name on layer (run_id, name);
CREATE UNIQUE INDEX layer_table_by_hash on layer_table (run_id, hash);
CREATE UNIQUE INDEX layout_by_columns on layout (run_id, table_id, metrics, scalars);
CREATE UNIQUE INDEX metric_by_name on metric (run_id, kind, name);
CREATE INDEX run_author_by_name on run_author (author, run_id);
CREATE INDEX run_by_project on run (project, run_id);
CREATE INDEX run_by_state on run (state, updated_at);
CREATE INDEX run_term_by_number on run_term (name, number, run_id);
CREATE INDEX run_term_by_value on run_term (name, value, run_id);
CREATE INDEX tail_by_step on tail (run_id, attempt, step0, step1, layout, n, id, size);
pragma application_id = 1397637937;
pragma user_version = 7;
