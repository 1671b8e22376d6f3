{{/* Name of everything in the release's namespace. */}}
{{- define "canaryrollout.name" -}}
{{- if contains "canaryrollout" .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-canaryrollout" (.Release.Name | trunc 38 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{/* Name of what has no namespace of its own, or is put into another one: two releases must not share it. */}}
{{- define "canaryrollout.wideName" -}}
{{- printf "%s-%s" .Release.Namespace (include "canaryrollout.name" .) -}}
{{- end -}}

{{- define "canaryrollout.selector" -}}
app.kubernetes.io/name: canaryrollout
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "canaryrollout.labels" -}}
{{ include "canaryrollout.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "canaryrollout.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "canaryrollout.name" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{- define "canaryrollout.leaseName" -}}
{{- .Values.leaderElection.leaseName | default (include "canaryrollout.name" .) -}}
{{- end -}}

{{/* Settings that are read once, at the start: all but the providers. */}}
{{- define "canaryrollout.settings" -}}
namespaces: {{ .Values.watchNamespaces | toJson }}
logFormat: {{ .Values.logFormat }}
httpPort: 8080
leaderElection:
  namespace: {{ .Release.Namespace }}
  name: {{ include "canaryrollout.leaseName" . }}
{{- end -}}

{{/* What the operator may do where it serves: read what tells it the state, patch what it moves, say what it did. */}}
{{- define "canaryrollout.rules" -}}
- apiGroups: [canaryrollout.io]
  resources: [canaryrollouts]
  verbs: [get, list, watch, patch]
- apiGroups: [canaryrollout.io]
  resources: [canaryrollouts/status]
  verbs: [patch]
- apiGroups: [networking.istio.io]
  resources: [virtualservices]
  verbs: [get, list, patch]
- apiGroups: [networking.istio.io]
  resources: [destinationrules]
  verbs: [get, patch]
- apiGroups: [networking.istio.io]
  resources: [workloadentries, serviceentries]
  verbs: [list]
- apiGroups: [""]
  resources: [services]
  verbs: [get]
- apiGroups: [""]
  resources: [pods]
  verbs: [list]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

{{/* What it may do where its Lease is. Making one cannot be tied to a name, hence the rule of its own. */}}
{{- define "canaryrollout.leaseRules" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ include "canaryrollout.leaseName" . }}]
  verbs: [get, update]
{{- end -}}
