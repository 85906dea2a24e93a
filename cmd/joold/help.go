package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/pflag"

	"joold/internal/config"
)

func helpCommand() *command {
	return &command{
		name:  "help",
		args:  "[COMMAND | exit-status]",
		short: "show help on a command, or on the exit statuses",
		words: helpTopics,
		setup: func(*pflag.FlagSet) func(context.Context, *env) error {
			return func(_ context.Context, e *env) error {
				switch len(e.args) {
				case 0:
					return printHelp(e, "")
				case 1:
					return printHelp(e, e.args[0])
				}
				return usagef("help: unexpected argument %q", e.args[1])
			}
		},
	}
}

// exitTopic is the one topic that is no command.
const exitTopic = "exit-status"

func helpTopics() []string { return append(commandNames(), exitTopic) }

// printHelp shows the help of a topic: a command, the empty name of the daemon,
// or exitTopic.
func printHelp(e *env, topic string) error {
	var text string
	switch c := commandNamed(topic); {
	case topic == "":
		text = overview()
	case topic == exitTopic:
		text = exitHelp()
	case c != nil:
		text = c.help()
	default:
		return usagef("help: nothing on %q; the nearest is %q", topic, config.Nearest(topic, helpTopics()))
	}
	_, err := io.WriteString(e.stdout, text)
	return err
}

// width is how many columns help may fill.
const width = 80

func overview() string {
	var b strings.Builder
	daemon := daemonCommand()
	b.WriteString(daemon.long)
	b.WriteString("\n\nCommands:\n")
	for _, c := range commands() {
		if c.name != "" {
			fmt.Fprintf(&b, "  %-11s %s\n", c.name, c.short)
		}
	}
	fs, _ := daemon.flags()
	fmt.Fprintf(&b, "\nFlags of the daemon:\n%s\n", fs.FlagUsagesWrapped(width))
	b.WriteString("`joold help COMMAND` tells more of a command, joold(8) of everything.\n")
	return b.String()
}

// help is how a subcommand is used.
func (c *command) help() string {
	var b strings.Builder
	fs, _ := c.flags()
	fmt.Fprintf(&b, "joold %s: %s\n\nUsage:\n  joold %s\n", c.name, c.short, strings.Join(strings.Fields(c.name+" [FLAGS] "+c.args), " "))
	if c.long != "" {
		fmt.Fprintf(&b, "\n%s\n", c.long)
	}
	fmt.Fprintf(&b, "\nFlags:\n%s", fs.FlagUsagesWrapped(width))
	return b.String()
}

func exitHelp() string {
	var b strings.Builder
	b.WriteString("joold exits with:\n")
	for status, meaning := range exitMeanings {
		fmt.Fprintf(&b, "  %d  %s\n", status, meaning)
	}
	return b.String()
}
