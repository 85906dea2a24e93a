package nlchan

// Jool's numbers (its common/config.h), and where they depend on the module.

// Operations that every module numbers alike: JNLOP_*.
const (
	opInstanceHello  = 2
	opStatsForeach   = 7
	opGlobalForeach  = 8
	opGlobalUpdate   = 9
	opPool4Foreach   = 18
	opBIBForeach     = 22
	opBIBRemove      = 24
	opSessionForeach = 25
)

// Attributes that every module numbers alike.
const (
	attrGlobals        = 2 // JNLAR_GLOBALS
	attrSessionEntries = 7 // JNLAR_SESSION_ENTRIES

	attrErrorCode    = 1 // JNLAERR_*
	attrErrorMessage = 2

	attrHelloStatus = 1 // JNLAIS_STATUS
	helloAlive      = 0 // IHS_ALIVE

	attrPrefixAddr = 1 // JNLAP_*
	attrPrefixLen  = 2

	attrTransportAddr = 1 // JNLAT_*
	attrTransportPort = 2

	attrPool4Mark    = 1 // JNLAP4_*
	attrPool4Proto   = 4
	attrPool4Prefix  = 5
	attrPool4MinPort = 6
	attrPool4MaxPort = 7

	attrBIBSrc6   = 1 // JNLAB_*
	attrBIBSrc4   = 2
	attrBIBProto  = 3
	attrBIBStatic = 4

	attrPool6    = 2 // JNLAG_*; the others are Knobs
	attrTCPEst   = 20
	attrTCPTrans = 21
	attrUDP      = 22
	attrICMP     = 23

	statSuccess  = 3 // JSTAT_*
	statBIBs     = 4
	statSessions = 5
)

// numbers are those that 4.2 shifted: four operations came in before
// JNLOP_FILE_HANDLE, and an attribute before JNLAR_OFFSET.
type numbers struct {
	opAdd, opAdvertise, opAck                       uint8  // JNLOP_JOOLD_*
	attrOffset, attrOffset8, attrOperand, attrProto uint16 // JNLAR_*
}

var (
	numbers41 = numbers{opAdd: 27, opAdvertise: 28, opAck: 29, attrOffset: 8, attrOffset8: 9, attrOperand: 10, attrProto: 11}
	numbers42 = numbers{opAdd: 31, opAdvertise: 32, opAck: 33, attrOffset: 9, attrOffset8: 10, attrOperand: 11, attrProto: 12}
)

// maxAttr42 is JNLAR_MAX of 4.2, by which it is told: its release candidates
// give 4.1.255 for a version.
const maxAttr42 = 14

// dialect is how to talk to the module that is loaded.
type dialect struct {
	numbers
	family  uint16
	header  int // length of Jool's header
	version Version
	is42    bool
}

func newDialect(f family, v Version) dialect {
	d := dialect{family: f.id, header: f.header, version: v, numbers: numbers41}
	if f.maxAttr >= maxAttr42 {
		d.numbers, d.is42 = numbers42, true
	}
	return d
}

// magic tells whether messages bear the magic number; 4.1.4's do not.
func (d *dialect) magic() bool { return d.header >= len(joolMagic)+joolHeader }

// syncStats are the ids of JSTAT_JOOLD_SSS_ENOSPC and JSTAT_JOOLD_ADS; zero
// where the module does not count them.
func (d *dialect) syncStats() (dropped, advertised uint8) {
	switch {
	case !d.version.since(12):
		return 0, 0
	case d.is42:
		return 87, 90
	case d.version.Less(4, 1, 13):
		return 79, 82
	}
	return 78, 81
}
