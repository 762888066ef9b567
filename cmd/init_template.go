package cmd

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/zdt-dev/zdt/unitgen"
)

// instancesFlag is --instances: names, and ranges of numbers.
type instancesFlag []string

// maxInstances bounds what a mistyped range asks for.
const maxInstances = 256

var numbers = regexp.MustCompile(`^([0-9]{1,9})-([0-9]{1,9})$`)

// Set reads 1-3,blue.
func (i *instancesFlag) Set(s string) error {
	var all []string
	for part := range strings.SplitSeq(s, ",") {
		m := numbers.FindStringSubmatch(part)
		if m == nil {
			if err := unitgen.ValidateName("name@" + part); err != nil {
				return errors.New("give names and ranges of numbers, such as 1-3 or blue,green")
			}
			all = append(all, part)
			continue
		}
		from, _ := strconv.Atoi(m[1]) // nine digits at most
		to, _ := strconv.Atoi(m[2])
		if to < from || to-from >= maxInstances {
			return fmt.Errorf("%s is no range of 1 to %d numbers", part, maxInstances)
		}
		for n := from; n <= to; n++ {
			all = append(all, fmt.Sprintf("%0*d", len(m[1]), n)) // 01-12 has leading zeros
		}
	}
	for n, name := range all {
		if slices.Contains(all[:n], name) {
			return fmt.Errorf("instance %s is named twice", name)
		}
	}
	if len(all) > maxInstances {
		return fmt.Errorf("%d instances are more than %d", len(all), maxInstances)
	}
	*i = all
	return nil
}

func (i *instancesFlag) String() string { return "" }

// Type names the flag's value in --help.
func (i *instancesFlag) Type() string { return "LIST" }

// templateName accepts what serviceName does, and the name of a template: NAME@ or NAME@.service.
func templateName(arg string) (string, error) {
	name := strings.TrimSuffix(arg, ".service")
	if unitgen.ValidateTemplate(name) == nil {
		return name, nil
	}
	return serviceName(arg)
}

// chooseInstances finds out which services the command is about: the one of its name or, of a template, those of --instances, else
// those that are there.
func (p *initPlan) chooseInstances(o initOptions) error {
	if !p.spec.Template() {
		if len(o.Instances) > 0 {
			return usage("name the template: zdt init "+o.Name+"@", "init: --instances is for templates, and %s is none", o.Name)
		}
		if template, instance, ok := unitgen.SplitName(o.Name); ok {
			return usage("zdt init "+template+" --instances "+instance+" ...", "init: %s is an instance; make its template", o.Name)
		}
		p.services = []string{o.Name}
		return nil
	}
	all, err := p.paths.Instances(p.spec.Name)
	if err != nil {
		return fmt.Errorf("list instances: %w", err)
	}
	for _, i := range o.Instances {
		p.services = append(p.services, p.spec.Name+i)
	}
	if len(p.services) == 0 {
		p.services = all
	}
	if len(p.services) == 0 {
		return usage("say which there are to be, as in --instances 1-3", "init: %s has no instances yet", p.spec.Name)
	}
	for _, name := range slices.Concat(p.services, all) {
		_, instance, _ := unitgen.SplitName(name)
		if !slices.Contains(p.spec.Instances, instance) {
			p.spec.Instances = append(p.spec.Instances, instance)
		}
	}
	return nil
}

// initUnit is a unit that systemd is asked about.
type initUnit struct {
	name    string
	file    string // that it is made of: web@.service for web@1.service
	service string // "": a socket
}

// units are those of all services of the plan, the sockets of each before it.
func (p *initPlan) units() []initUnit {
	var all []initUnit
	for _, service := range p.services {
		_, instance, _ := unitgen.SplitName(service)
		for _, file := range p.spec.SocketUnits() {
			all = append(all, initUnit{name: unitgen.InstanceUnit(file, instance), file: file})
		}
		file := p.spec.ServiceUnit()
		all = append(all, initUnit{unitgen.InstanceUnit(file, instance), file, service})
	}
	return all
}

// instantiated are the units that come of a unit file: itself, or one for each instance.
func (p *initPlan) instantiated(file string) []string {
	if !p.spec.Template() {
		return []string{file}
	}
	var units []string
	for _, i := range p.spec.Instances {
		units = append(units, unitgen.InstanceUnit(file, i))
	}
	return units
}
