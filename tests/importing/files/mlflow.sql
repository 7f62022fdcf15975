CREATE TABLE "experiments" (
	experiment_id INTEGER NOT NULL, 
	name VARCHAR(256) NOT NULL, 
	artifact_location VARCHAR(256), 
	lifecycle_stage VARCHAR(32), 
	creation_time BIGINT, 
	last_update_time BIGINT, 
	workspace VARCHAR(63) DEFAULT 'default' NOT NULL, 
	CONSTRAINT experiment_pk PRIMARY KEY (experiment_id), 
	CONSTRAINT experiments_lifecycle_stage CHECK (lifecycle_stage IN ('active', 'deleted')), 
	CONSTRAINT uq_experiments_workspace_name UNIQUE (workspace, name)
);
INSERT INTO "experiments" VALUES(0,'Default','mlruns/0','active',1796055777718,1796055777718,'default');
INSERT INTO "experiments" VALUES(1,'demo','file:///nowhere','active',1796055777734,1796055777734,'default');
CREATE TABLE "metrics" (
	"key" VARCHAR(250) NOT NULL, 
	value FLOAT NOT NULL, 
	timestamp BIGINT NOT NULL, 
	run_uuid VARCHAR(32) NOT NULL, 
	step BIGINT DEFAULT '0' NOT NULL, 
	is_nan BOOLEAN DEFAULT '0' NOT NULL, 
	CONSTRAINT metric_pk PRIMARY KEY ("key", timestamp, step, run_uuid, value, is_nan), 
	FOREIGN KEY(run_uuid) REFERENCES runs (run_uuid), 
	CHECK (is_nan IN (0, 1))
);
INSERT INTO "metrics" VALUES('train/loss',2.0,1796055778066,'63ee9347b9714ead9d719af9c06e1b45',1,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055778066,'63ee9347b9714ead9d719af9c06e1b45',1,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',1.125,1796055778066,'63ee9347b9714ead9d719af9c06e1b45',1,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055778066,'63ee9347b9714ead9d719af9c06e1b45',1,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',0.5,1796055778066,'63ee9347b9714ead9d719af9c06e1b45',1,0);
INSERT INTO "metrics" VALUES('train/loss',1.0,1796055778119,'63ee9347b9714ead9d719af9c06e1b45',2,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055778119,'63ee9347b9714ead9d719af9c06e1b45',2,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',1.25,1796055778119,'63ee9347b9714ead9d719af9c06e1b45',2,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055778119,'63ee9347b9714ead9d719af9c06e1b45',2,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',1.0,1796055778119,'63ee9347b9714ead9d719af9c06e1b45',2,0);
INSERT INTO "metrics" VALUES('train/loss',6.66666666666666629659e-01,1796055778162,'63ee9347b9714ead9d719af9c06e1b45',3,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055778162,'63ee9347b9714ead9d719af9c06e1b45',3,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',1.375,1796055778162,'63ee9347b9714ead9d719af9c06e1b45',3,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055778162,'63ee9347b9714ead9d719af9c06e1b45',3,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',1.5,1796055778162,'63ee9347b9714ead9d719af9c06e1b45',3,0);
INSERT INTO "metrics" VALUES('train/loss',0.5,1796055778211,'63ee9347b9714ead9d719af9c06e1b45',4,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055778211,'63ee9347b9714ead9d719af9c06e1b45',4,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',1.5,1796055778211,'63ee9347b9714ead9d719af9c06e1b45',4,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055778211,'63ee9347b9714ead9d719af9c06e1b45',4,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',2.0,1796055778211,'63ee9347b9714ead9d719af9c06e1b45',4,0);
INSERT INTO "metrics" VALUES('train/loss',0.4,1796055778252,'63ee9347b9714ead9d719af9c06e1b45',5,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055778252,'63ee9347b9714ead9d719af9c06e1b45',5,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',1.625,1796055778252,'63ee9347b9714ead9d719af9c06e1b45',5,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055778252,'63ee9347b9714ead9d719af9c06e1b45',5,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',2.5,1796055778252,'63ee9347b9714ead9d719af9c06e1b45',5,0);
INSERT INTO "metrics" VALUES('train/loss',3.33333333333333314829e-01,1796055778315,'63ee9347b9714ead9d719af9c06e1b45',6,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055778315,'63ee9347b9714ead9d719af9c06e1b45',6,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',1.75,1796055778315,'63ee9347b9714ead9d719af9c06e1b45',6,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055778315,'63ee9347b9714ead9d719af9c06e1b45',6,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',3.0,1796055778315,'63ee9347b9714ead9d719af9c06e1b45',6,0);
INSERT INTO "metrics" VALUES('train/loss',2.85714285714285698425e-01,1796055778371,'63ee9347b9714ead9d719af9c06e1b45',7,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055778371,'63ee9347b9714ead9d719af9c06e1b45',7,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',1.875,1796055778371,'63ee9347b9714ead9d719af9c06e1b45',7,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055778371,'63ee9347b9714ead9d719af9c06e1b45',7,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',3.5,1796055778371,'63ee9347b9714ead9d719af9c06e1b45',7,0);
INSERT INTO "metrics" VALUES('train/loss',0.25,1796055778431,'63ee9347b9714ead9d719af9c06e1b45',8,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055778431,'63ee9347b9714ead9d719af9c06e1b45',8,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',2.0,1796055778431,'63ee9347b9714ead9d719af9c06e1b45',8,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055778431,'63ee9347b9714ead9d719af9c06e1b45',8,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',4.0,1796055778431,'63ee9347b9714ead9d719af9c06e1b45',8,0);
INSERT INTO "metrics" VALUES('train/loss',2.22222222222222209886e-01,1796055778483,'63ee9347b9714ead9d719af9c06e1b45',9,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055778483,'63ee9347b9714ead9d719af9c06e1b45',9,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',2.125,1796055778483,'63ee9347b9714ead9d719af9c06e1b45',9,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055778483,'63ee9347b9714ead9d719af9c06e1b45',9,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',4.5,1796055778483,'63ee9347b9714ead9d719af9c06e1b45',9,0);
INSERT INTO "metrics" VALUES('train/loss',0.2,1796055778525,'63ee9347b9714ead9d719af9c06e1b45',10,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055778525,'63ee9347b9714ead9d719af9c06e1b45',10,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',2.25,1796055778525,'63ee9347b9714ead9d719af9c06e1b45',10,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055778525,'63ee9347b9714ead9d719af9c06e1b45',10,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',5.0,1796055778525,'63ee9347b9714ead9d719af9c06e1b45',10,0);
INSERT INTO "metrics" VALUES('train/loss',1.81818181818181823228e-01,1796055778587,'63ee9347b9714ead9d719af9c06e1b45',11,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055778587,'63ee9347b9714ead9d719af9c06e1b45',11,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',2.375,1796055778587,'63ee9347b9714ead9d719af9c06e1b45',11,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055778587,'63ee9347b9714ead9d719af9c06e1b45',11,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',5.5,1796055778587,'63ee9347b9714ead9d719af9c06e1b45',11,0);
INSERT INTO "metrics" VALUES('train/loss',1.66666666666666657414e-01,1796055778639,'63ee9347b9714ead9d719af9c06e1b45',12,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055778639,'63ee9347b9714ead9d719af9c06e1b45',12,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',2.5,1796055778639,'63ee9347b9714ead9d719af9c06e1b45',12,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055778639,'63ee9347b9714ead9d719af9c06e1b45',12,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',6.0,1796055778639,'63ee9347b9714ead9d719af9c06e1b45',12,0);
INSERT INTO "metrics" VALUES('train/loss',1.53846153846153854694e-01,1796055778683,'63ee9347b9714ead9d719af9c06e1b45',13,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055778683,'63ee9347b9714ead9d719af9c06e1b45',13,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',2.625,1796055778683,'63ee9347b9714ead9d719af9c06e1b45',13,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055778683,'63ee9347b9714ead9d719af9c06e1b45',13,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',6.5,1796055778683,'63ee9347b9714ead9d719af9c06e1b45',13,0);
INSERT INTO "metrics" VALUES('train/loss',1.42857142857142849212e-01,1796055778731,'63ee9347b9714ead9d719af9c06e1b45',14,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055778731,'63ee9347b9714ead9d719af9c06e1b45',14,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',2.75,1796055778731,'63ee9347b9714ead9d719af9c06e1b45',14,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055778731,'63ee9347b9714ead9d719af9c06e1b45',14,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',7.0,1796055778731,'63ee9347b9714ead9d719af9c06e1b45',14,0);
INSERT INTO "metrics" VALUES('train/loss',1.33333333333333331482e-01,1796055778779,'63ee9347b9714ead9d719af9c06e1b45',15,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055778779,'63ee9347b9714ead9d719af9c06e1b45',15,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',2.875,1796055778779,'63ee9347b9714ead9d719af9c06e1b45',15,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055778779,'63ee9347b9714ead9d719af9c06e1b45',15,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',7.5,1796055778779,'63ee9347b9714ead9d719af9c06e1b45',15,0);
INSERT INTO "metrics" VALUES('train/loss',0.125,1796055778835,'63ee9347b9714ead9d719af9c06e1b45',16,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055778835,'63ee9347b9714ead9d719af9c06e1b45',16,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',3.0,1796055778835,'63ee9347b9714ead9d719af9c06e1b45',16,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055778835,'63ee9347b9714ead9d719af9c06e1b45',16,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',8.0,1796055778835,'63ee9347b9714ead9d719af9c06e1b45',16,0);
INSERT INTO "metrics" VALUES('train/loss',1.17647058823529410132e-01,1796055778892,'63ee9347b9714ead9d719af9c06e1b45',17,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055778892,'63ee9347b9714ead9d719af9c06e1b45',17,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',3.125,1796055778892,'63ee9347b9714ead9d719af9c06e1b45',17,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055778892,'63ee9347b9714ead9d719af9c06e1b45',17,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',8.5,1796055778892,'63ee9347b9714ead9d719af9c06e1b45',17,0);
INSERT INTO "metrics" VALUES('train/loss',1.11111111111111104943e-01,1796055778943,'63ee9347b9714ead9d719af9c06e1b45',18,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055778943,'63ee9347b9714ead9d719af9c06e1b45',18,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',3.25,1796055778943,'63ee9347b9714ead9d719af9c06e1b45',18,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055778943,'63ee9347b9714ead9d719af9c06e1b45',18,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',9.0,1796055778943,'63ee9347b9714ead9d719af9c06e1b45',18,0);
INSERT INTO "metrics" VALUES('train/loss',1.05263157894736836261e-01,1796055778987,'63ee9347b9714ead9d719af9c06e1b45',19,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055778987,'63ee9347b9714ead9d719af9c06e1b45',19,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',3.375,1796055778987,'63ee9347b9714ead9d719af9c06e1b45',19,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055778987,'63ee9347b9714ead9d719af9c06e1b45',19,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',9.5,1796055778987,'63ee9347b9714ead9d719af9c06e1b45',19,0);
INSERT INTO "metrics" VALUES('train/loss',0.0,1796055779035,'63ee9347b9714ead9d719af9c06e1b45',20,1);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055779035,'63ee9347b9714ead9d719af9c06e1b45',20,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',3.5,1796055779035,'63ee9347b9714ead9d719af9c06e1b45',20,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055779035,'63ee9347b9714ead9d719af9c06e1b45',20,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',10.0,1796055779035,'63ee9347b9714ead9d719af9c06e1b45',20,0);
INSERT INTO "metrics" VALUES('train/loss',9.52380952380952328084e-02,1796055779073,'63ee9347b9714ead9d719af9c06e1b45',21,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055779073,'63ee9347b9714ead9d719af9c06e1b45',21,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',3.625,1796055779073,'63ee9347b9714ead9d719af9c06e1b45',21,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055779073,'63ee9347b9714ead9d719af9c06e1b45',21,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',10.5,1796055779073,'63ee9347b9714ead9d719af9c06e1b45',21,0);
INSERT INTO "metrics" VALUES('train/loss',9.09090909090909116141e-02,1796055779103,'63ee9347b9714ead9d719af9c06e1b45',22,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055779103,'63ee9347b9714ead9d719af9c06e1b45',22,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',3.75,1796055779103,'63ee9347b9714ead9d719af9c06e1b45',22,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055779103,'63ee9347b9714ead9d719af9c06e1b45',22,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',11.0,1796055779103,'63ee9347b9714ead9d719af9c06e1b45',22,0);
INSERT INTO "metrics" VALUES('train/loss',8.6956521739130432369e-02,1796055779126,'63ee9347b9714ead9d719af9c06e1b45',23,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055779126,'63ee9347b9714ead9d719af9c06e1b45',23,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',3.875,1796055779126,'63ee9347b9714ead9d719af9c06e1b45',23,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055779126,'63ee9347b9714ead9d719af9c06e1b45',23,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',11.5,1796055779126,'63ee9347b9714ead9d719af9c06e1b45',23,0);
INSERT INTO "metrics" VALUES('train/loss',8.33333333333333287074e-02,1796055779151,'63ee9347b9714ead9d719af9c06e1b45',24,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055779151,'63ee9347b9714ead9d719af9c06e1b45',24,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',4.0,1796055779151,'63ee9347b9714ead9d719af9c06e1b45',24,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055779151,'63ee9347b9714ead9d719af9c06e1b45',24,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',12.0,1796055779151,'63ee9347b9714ead9d719af9c06e1b45',24,0);
INSERT INTO "metrics" VALUES('train/loss',0.08,1796055779180,'63ee9347b9714ead9d719af9c06e1b45',25,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055779180,'63ee9347b9714ead9d719af9c06e1b45',25,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',4.125,1796055779180,'63ee9347b9714ead9d719af9c06e1b45',25,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055779180,'63ee9347b9714ead9d719af9c06e1b45',25,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',12.5,1796055779180,'63ee9347b9714ead9d719af9c06e1b45',25,0);
INSERT INTO "metrics" VALUES('train/loss',7.6923076923076927347e-02,1796055779208,'63ee9347b9714ead9d719af9c06e1b45',26,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055779208,'63ee9347b9714ead9d719af9c06e1b45',26,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',4.25,1796055779208,'63ee9347b9714ead9d719af9c06e1b45',26,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055779208,'63ee9347b9714ead9d719af9c06e1b45',26,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',13.0,1796055779208,'63ee9347b9714ead9d719af9c06e1b45',26,0);
INSERT INTO "metrics" VALUES('train/loss',7.40740740740740699621e-02,1796055779232,'63ee9347b9714ead9d719af9c06e1b45',27,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055779232,'63ee9347b9714ead9d719af9c06e1b45',27,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',4.375,1796055779232,'63ee9347b9714ead9d719af9c06e1b45',27,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055779232,'63ee9347b9714ead9d719af9c06e1b45',27,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',13.5,1796055779232,'63ee9347b9714ead9d719af9c06e1b45',27,0);
INSERT INTO "metrics" VALUES('train/loss',7.14285714285714246063e-02,1796055779260,'63ee9347b9714ead9d719af9c06e1b45',28,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055779260,'63ee9347b9714ead9d719af9c06e1b45',28,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',4.5,1796055779260,'63ee9347b9714ead9d719af9c06e1b45',28,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055779260,'63ee9347b9714ead9d719af9c06e1b45',28,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',14.0,1796055779260,'63ee9347b9714ead9d719af9c06e1b45',28,0);
INSERT INTO "metrics" VALUES('train/loss',6.89655172413793093877e-02,1796055779307,'63ee9347b9714ead9d719af9c06e1b45',29,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055779307,'63ee9347b9714ead9d719af9c06e1b45',29,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',4.625,1796055779307,'63ee9347b9714ead9d719af9c06e1b45',29,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055779307,'63ee9347b9714ead9d719af9c06e1b45',29,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',14.5,1796055779307,'63ee9347b9714ead9d719af9c06e1b45',29,0);
INSERT INTO "metrics" VALUES('train/loss',6.66666666666666657414e-02,1796055779352,'63ee9347b9714ead9d719af9c06e1b45',30,0);
INSERT INTO "metrics" VALUES('train/learning_rate',0.001,1796055779352,'63ee9347b9714ead9d719af9c06e1b45',30,0);
INSERT INTO "metrics" VALUES('sigma/fc1.weight',4.75,1796055779352,'63ee9347b9714ead9d719af9c06e1b45',30,0);
INSERT INTO "metrics" VALUES('sigma/fc2.weight',2.0,1796055779352,'63ee9347b9714ead9d719af9c06e1b45',30,0);
INSERT INTO "metrics" VALUES('l2_norm/grad/fc1.weight',15.0,1796055779352,'63ee9347b9714ead9d719af9c06e1b45',30,0);
INSERT INTO "metrics" VALUES('train/loss',1.79769313486231562234e+308,1796055779404,'63ee9347b9714ead9d719af9c06e1b45',31,0);
CREATE TABLE "params" (
	"key" VARCHAR(250) NOT NULL, 
	value VARCHAR(8000) NOT NULL, 
	run_uuid VARCHAR(32) NOT NULL, 
	CONSTRAINT param_pk PRIMARY KEY ("key", run_uuid), 
	FOREIGN KEY(run_uuid) REFERENCES runs (run_uuid)
);
INSERT INTO "params" VALUES('lr','0.001','63ee9347b9714ead9d719af9c06e1b45');
CREATE TABLE "runs" (
	run_uuid VARCHAR(32) NOT NULL, 
	name VARCHAR(250), 
	source_type VARCHAR(20), 
	source_name VARCHAR(500), 
	entry_point_name VARCHAR(50), 
	user_id VARCHAR(256), 
	status VARCHAR(9), 
	start_time BIGINT, 
	end_time BIGINT, 
	source_version VARCHAR(50), 
	lifecycle_stage VARCHAR(20), 
	artifact_uri VARCHAR(200), 
	experiment_id INTEGER, deleted_time BIGINT, 
	CONSTRAINT run_pk PRIMARY KEY (run_uuid), 
	CONSTRAINT runs_lifecycle_stage CHECK (lifecycle_stage IN ('active', 'deleted')), 
	CONSTRAINT source_type CHECK (source_type IN ('NOTEBOOK', 'JOB', 'LOCAL', 'UNKNOWN', 'PROJECT')), 
	FOREIGN KEY(experiment_id) REFERENCES experiments (experiment_id), 
	CHECK (status IN ('SCHEDULED', 'FAILED', 'FINISHED', 'RUNNING', 'KILLED'))
);
INSERT INTO "runs" VALUES('63ee9347b9714ead9d719af9c06e1b45','first','UNKNOWN','','','root','FINISHED',1796055777920,1796055779460,'','active','file:///nowhere/63ee9347b9714ead9d719af9c06e1b45/artifacts',1,NULL);
CREATE TABLE "tags" (
	"key" VARCHAR(250) NOT NULL, 
	value VARCHAR(8000), 
	run_uuid VARCHAR(32) NOT NULL, 
	CONSTRAINT tag_pk PRIMARY KEY ("key", run_uuid), 
	FOREIGN KEY(run_uuid) REFERENCES runs (run_uuid)
);
INSERT INTO "tags" VALUES('mlflow.user','root','63ee9347b9714ead9d719af9c06e1b45');
INSERT INTO "tags" VALUES('mlflow.source.name','make.py','63ee9347b9714ead9d719af9c06e1b45');
INSERT INTO "tags" VALUES('mlflow.source.type','LOCAL','63ee9347b9714ead9d719af9c06e1b45');
INSERT INTO "tags" VALUES('mlflow.source.git.commit','aad6e8da5e40d1262c8e827557de59dcb7c0f84e','63ee9347b9714ead9d719af9c06e1b45');
INSERT INTO "tags" VALUES('mlflow.source.git.branch','import','63ee9347b9714ead9d719af9c06e1b45');
INSERT INTO "tags" VALUES('mlflow.runName','first','63ee9347b9714ead9d719af9c06e1b45');
INSERT INTO "tags" VALUES('team','a','63ee9347b9714ead9d719af9c06e1b45');
