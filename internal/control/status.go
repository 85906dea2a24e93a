package control

import "time"

// Status is what a daemon says of itself. Its JSON form is an interface: names
// are changed only with a word in the CHANGELOG.
type Status struct {
	Version  string    `json:"version"`
	PID      int       `json:"pid"`
	Started  time.Time `json:"started"`
	Uptime   float64   `json:"uptime_seconds"`
	Instance Instance  `json:"instance"`
	Network  Network   `json:"network"`
	Table    Table     `json:"table"`
	Kernel   Kernel    `json:"kernel"`
	Net      Net       `json:"net"`
	Log      Log       `json:"log"`
	Peers    []Peer    `json:"peers"`
	Cluster  *Cluster  `json:"cluster,omitempty"` // absent while there is no instance
}

// Cluster is this node's part among the nodes of ours, and what it knows of the
// others. C daemons are among the Peers only.
type Cluster struct {
	Node         string   `json:"node"`  // this node's name
	State        string   `json:"state"` // "syncing", "synced" or "gave up"
	Why          string   `json:"why"`
	Since        float64  `json:"since_seconds"` // in this state
	Active       bool     `json:"active"`        // this node's kernel announces sessions of its own
	Sessions     int      `json:"sessions"`
	Lag          float64  `json:"lag_seconds"`       // the longest of the nodes that take part
	Copying      string   `json:"copying,omitempty"` // the node of which a copy is being taken
	Giving       int      `json:"giving"`            // copies that are being given
	Verified     *float64 `json:"verified_seconds"`  // how long ago nothing that any other node has was missing here; null if that is not known
	Requests     uint64   `json:"requests"`          // for lost datagrams, sent
	Repaired     uint64   `json:"repaired"`          // numbers that others asked for and this node answered
	Sweeps       uint64   `json:"sweeps"`            // of this node's table, since others lacked what is no longer known one by one
	CopiesGiven  uint64   `json:"copies_given"`      // begun
	CopiesTaken  uint64   `json:"copies_taken"`      // complete
	CopiesBroken uint64   `json:"copies_broken"`     // ended half-way
	Crowded      uint64   `json:"crowded"`           // datagrams of nodes for which there is no room
	Unread       uint64   `json:"unread"`            // messages that cannot be read, of a later version perhaps
	Unproven     uint64   `json:"unproven"`          // datagrams of nodes that had not proven to speak now
	Stops        uint64   `json:"stops"`             // times that this process, or its machine, was stopped
	Nodes        []Node   `json:"nodes"`             // the others
}

// Node is a run of another node's daemon, by what it said last.
type Node struct {
	Name      string   `json:"name"`
	Address   string   `json:"address"`
	Version   string   `json:"version"` // of joold
	Live      bool     `json:"live"`    // it takes part
	Fresh     bool     `json:"fresh"`   // it has proven to speak now
	Left      bool     `json:"left"`    // it has said goodbye
	State     string   `json:"state"`
	Active    bool     `json:"active"`
	Module    string   `json:"module"` // version
	Encoding  string   `json:"encoding"`
	Sessions  int      `json:"sessions"`
	Ago       float64  `json:"last_heard_seconds"`
	Verified  *float64 `json:"verified_seconds"` // how long ago nothing that it has was missing here; null if that is not known
	Lag       float64  `json:"lag_seconds"`      // for how long some of its datagrams have been missing; 0 if none is
	Differs   int      `json:"differs"`          // parts of the table, of 128, that have differed for longer than what is under way explains
	Unlike    []string `json:"unlike,omitempty"` // what of its configuration is not as here
	Missing   uint64   `json:"missing"`          // datagrams that have not come, nor been made up for; it falls when they are
	Repaired  uint64   `json:"repaired"`         // have not come, and were made up for
	Late      uint64   `json:"late"`             // came after later ones
	Duplicate uint64   `json:"duplicate"`
	TooOld    uint64   `json:"too_old"`
	Requests  uint64   `json:"requests"` // for lost ones, to this node
}

// Log counts the lines of the daemon's log.
type Log struct {
	Waiting int    `json:"waiting"` // not written yet, since nobody reads
	Dropped uint64 `json:"dropped"` // lost, since too many waited or writing failed
}

// Instance is the Jool instance that the daemon serves.
type Instance struct {
	Name        string `json:"name"`
	InService   bool   `json:"in_service"`
	WaitingFor  string `json:"waiting_for,omitempty"`
	Module      string `json:"module,omitempty"`
	Encoding    string `json:"encoding,omitempty"`
	Pool6       string `json:"pool6,omitempty"`
	SyncEnabled bool   `json:"ss_enabled"`
	AnyMask     bool   `json:"masquerades"` // pool4 is empty: entries' masks are not checked
}

// Table is what is remembered of sessions, and what of it waits to be sent.
type Table struct {
	Sessions         int    `json:"sessions"`          // remembered
	Limit            int    `json:"limit"`             // of them
	Full             uint64 `json:"full"`              // sessions that found no room to be remembered
	Pending          int    `json:"pending"`           // waiting to be sent
	PendingLimit     int    `json:"pending_limit"`     // of them
	HeldBack         uint64 `json:"held_back"`         // announcements that told peers nothing, and were not sent
	DroppedRefreshes uint64 `json:"dropped_refreshes"` // refreshes that found no room to wait
	DroppedNews      uint64 `json:"dropped_news"`      // other sessions that did not; the next sweep sends them
	Died             uint64 `json:"died"`              // sessions whose life ended while they waited
	Displaced        uint64 `json:"displaced"`         // BIB entries forgotten, since the kernel announced others in their place
	Vanished         uint64 `json:"vanished"`          // sessions forgotten, since the kernel's table no longer has them
	Sweeps           uint64 `json:"sweeps"`            // times that the kernel's table was read through for what peers lack
}

// Network is the multicast group, or the nodes that are each sent to, and how they are
// reached.
type Network struct {
	WaitingFor  string   `json:"waiting_for,omitempty"` // why nothing passes
	Cluster     string   `json:"cluster"`
	Keys        int      `json:"keys"`               // of the cluster; with none nothing is signed
	Encrypts    bool     `json:"encrypts"`           // what is sent
	Unsigned    []string `json:"unsigned,omitempty"` // prefixes from which it is heard who does not sign, though there are keys
	Group       string   `json:"group"`              // "" if there is none
	Unicast     []string `json:"unicast,omitempty"`  // nodes that are each sent to
	In          string   `json:"in"`
	Out         string   `json:"out"`
	Source      string   `json:"source,omitempty"`
	Port        uint16   `json:"port,omitempty"` // likewise, and where this node is reached alone
	MTU         int      `json:"mtu"`
	MaxPayload  int      `json:"max_payload"`
	Wire        string   `json:"wire"`
	ReadBuffer  int      `json:"read_buffer"`
	WriteBuffer int      `json:"write_buffer"`
	Links       []Link   `json:"links,omitempty"` // where there are several; In to MTU are then of the first that can be used
}

// Link is one of several links that carry the group.
type Link struct {
	In         string `json:"in"`
	Out        string `json:"out"`
	WaitingFor string `json:"waiting_for,omitempty"` // why nothing passes
	Carrier    bool   `json:"carrier"`
	Source     string `json:"source,omitempty"`
	MTU        int    `json:"mtu"`
	Failed     uint64 `json:"failed"` // datagrams that could not be sent on it
}

// Kernel counts what passes between the daemon and the module.
type Kernel struct {
	Messages     uint64            `json:"messages"`      // heard on the joold channel
	Sessions     uint64            `json:"sessions"`      // announced in them
	Bytes        uint64            `json:"bytes"`         // of entries in them
	Unreadable   map[string]uint64 `json:"unreadable"`    // entries, by defect
	Overruns     uint64            `json:"overruns"`      // times that the netlink socket overflowed
	QueueDrops   uint64            `json:"queue_drops"`   // announcements that the module's full queue dropped (4.1.12 and later count them)
	Foreign      uint64            `json:"foreign"`       // messages of other instances
	Malformed    uint64            `json:"malformed"`     // messages without sense
	Injected     uint64            `json:"injected"`      // sessions given to the module
	AddMessages  uint64            `json:"add_messages"`  // in so many messages
	AddErrors    uint64            `json:"add_errors"`    // messages that the module refused
	Waiting      int               `json:"waiting"`       // sessions waiting for the module
	WaitingLimit int               `json:"waiting_limit"` // of them
	Dropped      uint64            `json:"dropped"`       // sessions that found no room to wait, or no instance when they had
	Expired      uint64            `json:"expired"`       // sessions that died before the module could take them
	Unfit        uint64            `json:"unfit"`         // sessions that this module would misread: 4.1.12 and a pool6 other than a /96
	BIBRemoved   uint64            `json:"bib_removed"`   // BIB entries removed, since a peer sent newer sessions that contradict them
	Conflicts    uint64            `json:"conflicts"`     // sessions left out, since they contradict BIB entries that are the newer, or in use

	LastConflicts []Conflict `json:"last_conflicts"` // a few of these, the latest first
}

// Conflict is a peer's claim on a mask that was not followed, since the kernel's
// BIB has another. The addresses are transport addresses, as "192.0.2.1:4000".
type Conflict struct {
	Proto     string    `json:"proto"`
	Session   string    `json:"session"`        // the IPv6 side of the peer's session
	Mask      string    `json:"mask"`           // its IPv4 side
	BIB       string    `json:"bib"`            // the IPv6 side of the entry that it contradicts
	BIBMask   string    `json:"bib_mask"`       // the entry's IPv4 side
	From      string    `json:"from,omitempty"` // the peer that sent it last, if it is remembered
	Because   string    `json:"because"`
	Times     uint64    `json:"times"` // that it came
	LastHeard time.Time `json:"last_heard"`
	Ago       float64   `json:"last_heard_seconds"`
}

// Net counts what passes between the daemon and the network.
type Net struct {
	SentDatagrams  uint64            `json:"sent_datagrams"`
	SentSessions   uint64            `json:"sent_sessions"`
	SentBytes      uint64            `json:"sent_bytes"`
	SendErrors     map[string]uint64 `json:"send_errors"` // datagrams, by error
	RcvdDatagrams  uint64            `json:"rcvd_datagrams"`
	RcvdSessions   uint64            `json:"rcvd_sessions"` // entries that could be read
	RcvdBytes      uint64            `json:"rcvd_bytes"`
	Unreadable     map[string]uint64 `json:"unreadable"`      // entries, by defect
	Refused        map[string]uint64 `json:"refused"`         // entries, by reason
	RefusedWaiting int               `json:"refused_waiting"` // of those refused for pool4, how many are kept for when it changes
	Strays         map[string]uint64 `json:"strays"`          // datagrams not looked into, by reason
	Stamps         map[string]uint64 `json:"stamps"`          // datagrams, by what was found about their stamps
	Unheard        map[string]uint64 `json:"unheard"`         // those of them that were refused for it
	Verdicts       map[string]uint64 `json:"verdicts"`        // acceptable entries, by what was found about them
	Unserved       uint64            `json:"unserved"`        // datagrams heard while the instance was away
	SocketDrops    uint64            `json:"socket_drops"`    // datagrams lost for want of room in the socket
	ReadErrors     uint64            `json:"read_errors"`
	Numbered       map[string]uint64 `json:"numbered"`        // datagrams that are stamped as they should be, by what the cluster found about them: only what is "taken" was looked into
	ApartDatagrams uint64            `json:"apart_datagrams"` // sent besides SentDatagrams: what nodes say to each other, repairs, copies
	ApartSessions  uint64            `json:"apart_sessions"`
	ApartBytes     uint64            `json:"apart_bytes"`
	ApartErrors    map[string]uint64 `json:"apart_errors"` // datagrams, by error
}

// Peer is a node that was heard.
type Peer struct {
	Address   string    `json:"address"`
	Encoding  string    `json:"encoding"`
	ByteOrder string    `json:"byte_order"` // "same" as this machine's, or "other"
	LastHeard time.Time `json:"last_heard"`
	Ago       float64   `json:"last_heard_seconds"`
	Datagrams uint64    `json:"datagrams"`
	Sessions  uint64    `json:"sessions"`
	Refused   uint64    `json:"refused"` // entries not taken, for whatever reason
	Stamp     string    `json:"stamp"`   // what was found about that of its last datagram, as in Net's Stamps
	Stamped   bool      `json:"stamped"` // by that it is one of the Cluster's Nodes; a C daemon is not
}
