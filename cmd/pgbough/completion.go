package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
)

// completeWithin is how long a shell waits for names.
const completeWithin = 2 * time.Second

const noFiles = cobra.ShellCompDirectiveNoFileComp

// complete has ask ask the server for names, in the time there is. A shell that
// completes shows no errors: without an answer there are no names.
func complete(cmd *cobra.Command, ask func(context.Context) []cobra.Completion) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completeWithin)
	defer cancel()
	return ask(ctx), noFiles
}

// completeBranch offers the names of branches, for the first argument.
func (g *globals) completeBranch(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, noFiles
	}
	return g.branchNames(cmd, false)
}

// completeBranches offers the names of all branches, for the first two arguments.
func (g *globals) completeBranches(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 1 {
		return nil, noFiles
	}
	return g.branchNames(cmd, true)
}

// completeParentArg is completeBranch with the root branch.
func (g *globals) completeParentArg(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, noFiles
	}
	return g.branchNames(cmd, true)
}

// completeParent offers the names of branches, for a flag.
func (g *globals) completeParent(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return g.branchNames(cmd, true)
}

func (g *globals) branchNames(cmd *cobra.Command, root bool) ([]cobra.Completion, cobra.ShellCompDirective) {
	return complete(cmd, func(ctx context.Context) (names []cobra.Completion) {
		c, project, err := g.inProject(ctx)
		if err != nil {
			return nil
		}
		list, err := c.Branches(ctx, project)
		if err != nil {
			return nil
		}
		for _, b := range list.Branches {
			if root || !b.Default {
				names = append(names, cobra.CompletionWithDesc(b.Name, shownState(b)))
			}
		}
		return names
	})
}

// completeProject offers the names of projects, for a flag.
func (g *globals) completeProject(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return complete(cmd, func(ctx context.Context) (names []cobra.Completion) {
		c, err := g.client()
		if err != nil {
			return nil
		}
		list, err := c.Projects(ctx)
		if err != nil {
			return nil
		}
		for _, p := range list.Projects {
			names = append(names, p.Name)
		}
		return names
	})
}

// completeProjectArg is completeProject for the first argument.
func (g *globals) completeProjectArg(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, noFiles
	}
	return g.completeProject(cmd, args, toComplete)
}

// completeRole offers the login roles of the branch that is the first argument,
// for a flag.
func (g *globals) completeRole(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return complete(cmd, func(ctx context.Context) (names []cobra.Completion) {
		c, project, err := g.inProject(ctx)
		if err != nil || len(args) == 0 {
			return nil
		}
		list, err := c.Roles(ctx, project, args[0])
		if err != nil {
			return nil
		}
		for _, r := range list.Roles {
			names = append(names, r.Name)
		}
		return names
	})
}
