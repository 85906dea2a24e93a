package cluster

import "joold/internal/session"

// pile gives sessions back in their order. It is a heap, so that neither to add one
// nor to take one ever takes long, however many there are.
type pile []session.Placed

// push adds one.
func (p *pile) push(s session.Placed) {
	*p = append(*p, s)
	h := *p
	for i := len(h) - 1; i > 0; {
		up := (i - 1) / 2
		if h[up] <= h[i] {
			return
		}
		h[up], h[i] = h[i], h[up]
		i = up
	}
}

// pop takes the first away. There must be one.
func (p *pile) pop() session.Placed {
	h := *p
	first, last := h[0], len(h)-1
	h[0] = h[last]
	h = h[:last]
	*p = h
	for i := 0; ; {
		least := i
		for down := 2*i + 1; down <= 2*i+2 && down < len(h); down++ {
			if h[down] < h[least] {
				least = down
			}
		}
		if least == i {
			return first
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
}

// before tells whether the first of p comes before that of q.
func (p *pile) before(q *pile) bool {
	return len(*p) > 0 && (len(*q) == 0 || (*p)[0] < (*q)[0])
}
